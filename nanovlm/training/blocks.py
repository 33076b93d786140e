"""The components' blocks: compiled and checkpointed one by one, for training only.

Compiled by itself, a block is a small graph that all of its like share, whatever a plugin does around it. The graph of
an encoder's block is for any number of pictures; that of a decoder's block is for one length of row, of which there are
at most three (``data/filling.py``), so that a run compiles in its first steps and never again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from nanovlm.errors import ConfigError, summary
from nanovlm.experiment import Training
from nanovlm.model import VisionLanguageModel

BACKEND = "inductor"


def compiles(config: Training, device: torch.device) -> bool:
    return device.type == "cuda" if config.compile == "auto" else config.compile


def prepare_blocks(model: VisionLanguageModel, config: Training) -> None:
    """Compile and checkpoint the model's blocks in place, as ``config`` says; the weights keep their names."""
    compiling = compiles(config, model.device)
    for component in (model.vision_encoder, model.language_decoder):
        static = getattr(component, "varlen", False)  # others get other shapes with each row
        for block in component.blocks:
            if compiling:
                block.forward = compiled(block.forward, dynamic=False if static else None)
            if config.gradient_checkpointing:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compiled(function: Callable[..., Any], dynamic: bool | None) -> Callable[..., Any]:
    """``torch.compile``; a ConfigError where that does not work on this machine."""
    fast = torch.compile(function, dynamic=dynamic, backend=BACKEND)

    def call(*args: Any, **options: Any) -> Any:
        try:
            return fast(*args, **options)
        except torch._dynamo.exc.TorchDynamoException as error:  # no compiler, a model that it cannot read, ...
            raise ConfigError(
                f"training.compile: {summary(error)}; set training.compile=false to train without"
            ) from error

    return call


def eager() -> AbstractContextManager[Any]:
    """Within the block nothing is compiled: what is asked once in a while has shapes of its own."""
    return torch.compiler.set_stance("force_eager")
