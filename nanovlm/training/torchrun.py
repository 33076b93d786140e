"""What ``torchrun`` tells a process: which one of how many it is, and which GPU is its own."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from nanovlm.errors import ConfigError
from nanovlm.training.precision import choose_device

START = "`torchrun --nproc-per-node N -m nanovlm train ...`"


def numbers() -> tuple[int, int, int] | None:
    """This process's rank, their number, and its place on its machine; None for a process that is alone."""
    names = "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"
    given = {name: value for name in names if (value := os.environ.get(name))}
    if given.keys().isdisjoint(("RANK", "WORLD_SIZE")) or given.get("WORLD_SIZE") == "1":
        return None
    if missing := [name for name in names if name not in given]:
        there = " and ".join(name for name in names[:2] if name in given)
        raise ConfigError(
            f"environment: {there} {'is' if ' and ' not in there else 'are'} set, as for one of several processes, "
            f"but not {', '.join(missing)}; start them with {START}, or unset {there} to train with one process"
        )
    try:
        rank, world, local_rank = (int(given[name]) for name in names[:3])
    except ValueError:
        rank, world, local_rank = -1, 0, 0
    if not 0 <= rank < world or local_rank < 0:
        values = ", ".join(f"{name}={given[name]!r}" for name in names[:3])
        raise ConfigError(f"environment: {values} are no process's numbers; start the processes with {START}")
    if not dist.is_available():
        raise ConfigError(f"WORLD_SIZE={world}: torch {torch.__version__} is built without torch.distributed here")
    return rank, world, local_rank


def own_device(choice: str, local_rank: int) -> torch.device:
    """A GPU for each process of a machine."""
    device = choose_device(choice)
    if device.type == "mps":
        raise ConfigError(
            f"device={choice!r}: several processes cannot share it; set device=cpu, or start a single one"
        )
    if device.type == "cpu":
        return device
    there = torch.cuda.device_count()
    if local_rank >= there:
        raise ConfigError(
            f"LOCAL_RANK={local_rank}: each process needs a GPU of its own, and torch sees {there} here; start "
            f"torchrun with --nproc-per-node {there} at most, or set device=cpu"
        )
    return torch.device("cuda", local_rank)


def is_first() -> bool:
    """Whether this process is alone, or the first of several: the one that prints."""
    told = numbers()
    return told is None or told[0] == 0


def started_again() -> bool:
    """Whether torchrun began anew after a process had failed (``--max-restarts``)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def processes_here() -> int:
    """How many processes torchrun has started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
