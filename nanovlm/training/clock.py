"""How long a run has trained, how long it has waited for data, and how much memory it took."""

from __future__ import annotations

import resource
import sys
import time

import torch


class Clock:
    """Seconds of training, without evaluations, and what was done in them."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.waited = self.paused = 0.0
        self.samples = self.tokens = 0

    def waiting(self) -> Stopwatch:
        """Time that the trainer spends waiting for data."""
        return Stopwatch(self, "waited")

    def stopped(self) -> Stopwatch:
        """Time that is not training."""
        return Stopwatch(self, "paused")

    @property
    def seconds(self) -> float:
        return max(1e-9, self.wall_seconds - self.paused)

    def rates(self) -> dict[str, float]:
        return {
            "samples": self.samples,
            "samples_per_second": self.samples / self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
            "data_wait": self.waited / self.seconds,
        }

    @property
    def wall_seconds(self) -> float:
        """Since the trainer was made, evaluations included."""
        return time.perf_counter() - self.start


class Stopwatch:
    """Adds the time spent in its block to one of a clock's totals."""

    def __init__(self, clock: Clock, total: str) -> None:
        self.clock, self.total = clock, total

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        setattr(self.clock, self.total, getattr(self.clock, self.total) + time.perf_counter() - self.start)


def per_second(rate: float) -> str:
    """A rate in words: whole, and of a slow run with its tenths."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's where there is one, else this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
