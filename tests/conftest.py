"""What all tests share. Builders of tiny models and experiments are plain functions: ``from tiny import ...``."""

import os
import socket

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: it reads this once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from nanovlm import load_plugins
from nanovlm.plugins import Registries

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(scope="session")
def registries() -> Registries:
    return load_plugins()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Nothing but this machine can be reached."""
    connect = socket.socket.connect

    def local_only(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", local_only)
