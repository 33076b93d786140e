"""How much memory a run takes, and what to do where there is not enough."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nanovlm.data.packing import PackedRow
from nanovlm.errors import NanoVLMError


class OutOfMemoryError(NanoVLMError):
    """A row was too large for the device."""


class MemoryWatch:
    """Remembers the largest row that fitted, for the message about one that did not."""

    def __init__(self) -> None:
        self.fitted: tuple[int, int] = (0, 0)  # tokens and pictures, filling included

    @contextmanager
    def row(self, row: PackedRow, step: int) -> Iterator[None]:
        """Raises OutOfMemoryError in the place of the device's own error."""
        size = len(row.token_ids), len(row.pixels)
        try:
            yield
        except RuntimeError as error:
            if not ran_out(error):
                raise
            raise OutOfMemoryError(
                f"step {step}: out of memory at a row of {_words(size)} ({_largest(self.fitted)}); lower "
                "training.tokens_per_row or training.images_per_row, which changes no sample of any step, or set "
                "training.gradient_checkpointing=true"
            ) from None
        self.fitted = max(self.fitted, size)


def ran_out(error: RuntimeError) -> bool:
    """Whether an error is about memory: a GPU's has its own class, a CPU's only its words."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _words(size: tuple[int, int]) -> str:
    return f"{size[0]:,} tokens with {size[1]:,} pictures"


def _largest(fitted: tuple[int, int]) -> str:
    return f"the largest that fitted has {_words(fitted)}" if fitted[0] else "none has fitted yet"


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's where there is one, else this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
