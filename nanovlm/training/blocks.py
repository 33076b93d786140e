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
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nanovlm.attention import keep_groups_out_of_graphs
from nanovlm.errors import ConfigError, summary
from nanovlm.experiment import Training
from nanovlm.model import VisionLanguageModel

BACKEND = "inductor"
GRAPHS = 32  # of one block's code: for each length of row, with and without a picture, frozen, thawed. torch allows 8
Function = Callable[..., Any]


def compiles(config: Training, device: torch.device) -> bool:
    return device.type == "cuda" if config.compile == "auto" else config.compile


def prepare_blocks(model: VisionLanguageModel, config: Training) -> None:
    """Compile and checkpoint the model's blocks in place, as ``config`` says; the weights keep their names."""
    compiling, decoder = compiles(config, model.device), model.language_decoder
    if compiling:
        keep_groups_out_of_graphs()
    static = decoder.varlen  # others get other shapes with each row
    if compiling:  # past its limit torch would run a block as it is, with no more than a warning
        torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    for blocks, how in (
        (model.vision_encoder.blocks, any_batch),
        (decoder.blocks, each_shape if static else any_shape),
    ):
        for block in blocks:
            if compiling:
                block.forward = how(block.forward)
            if config.gradient_checkpointing:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def each_shape(function: Function) -> Function:
    """Compiled anew for each shape."""
    return _compiled(function, dynamic=False)


def any_shape(function: Function) -> Function:
    """Compiled for one shape, and once more for all others."""
    return _compiled(function, dynamic=None)


def any_batch(function: Function) -> Function:
    """Compiled for any number of pictures at once, which are the first axis of the first tensor that it is given."""
    fast = _compiled(function, dynamic=None)

    def call(*args: Any, **options: Any) -> Any:
        x = next(value for value in (*args, *options.values()) if isinstance(value, Tensor))
        torch._dynamo.maybe_mark_dynamic(x, 0)
        return fast(*args, **options)

    return call


def _compiled(function: Function, dynamic: bool | None) -> Function:
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
