"""How long a run has trained, how long it has waited for data, and what it did in that time."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, NamedTuple

from nanovlm.flops import Work

WINDOW = 20  # steps that the live rates are of: the first ones, which compile, must not count for ever


class Totals(NamedTuple):
    """Since a run began, evaluations left out."""

    seconds: float
    waited: float
    samples: int
    flops: float
    work: Work


START = Totals(0, 0, 0, 0, Work())


class Clock:
    """Seconds of training, without evaluations, and what was done in them.

    peak: the FLOPs a second that the device can do, if known.
    ranks: how many processes do as much as this one, which is asked for the rates of all.
    """

    def __init__(self, peak: float | None = None, ranks: int = 1) -> None:
        self.start = time.perf_counter()
        self.peak, self.ranks = peak, ranks
        self.waited = self.paused = 0.0
        self.samples = 0
        self.flops = 0.0
        self.work = Work()
        self.recent = deque([self.totals()], maxlen=WINDOW + 1)

    def waiting(self) -> Stopwatch:
        """Time that the trainer spends waiting for data."""
        return Stopwatch(self, "waited")

    def stopped(self) -> Stopwatch:
        """Time that is not training."""
        return Stopwatch(self, "paused")

    @property
    def seconds(self) -> float:
        return max(1e-9, self.wall_seconds - self.paused)

    def totals(self) -> Totals:
        return Totals(self.seconds, self.waited, self.samples, self.flops, self.work)

    def step_finished(self) -> dict[str, float]:
        """The rates of the last steps."""
        self.recent.append(self.totals())
        return self.rates(self.recent[0])

    def rates(self, since: Totals = START) -> dict[str, float]:
        """What was done a second, and the share of the time that was spent waiting for data.

        ``mfu`` is the model FLOPs utilisation, of 1; only where the FLOPs of the model and of the device are known.
        """
        now = self.totals()
        seconds = max(1e-9, now.seconds - since.seconds)
        flops = (now.flops - since.flops) / seconds
        return {
            "seconds": now.seconds,
            "samples": now.samples * self.ranks,
            "samples_per_second": (now.samples - since.samples) / seconds * self.ranks,
            "tokens_per_second": (now.work.tokens - since.work.tokens) / seconds * self.ranks,
            "data_wait": (now.waited - since.waited) / seconds,
            **({"mfu": flops / self.peak} if self.peak and flops else {}),
        }

    @property
    def wall_seconds(self) -> float:
        """Since the trainer was made, evaluations included."""
        return time.perf_counter() - self.start

    def state(self) -> dict[str, Any]:
        now = self.totals()._asdict()
        return now | now.pop("work")._asdict() | {"wall_seconds": self.wall_seconds}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave; the time in between does not count."""
        self.start = time.perf_counter() - state["wall_seconds"]
        self.paused = state["wall_seconds"] - state["seconds"]
        self.waited, self.flops = state["waited"], state["flops"]
        self.samples, self.work = state["samples"], Work(*(state[size] for size in Work._fields))
        self.recent = deque([self.totals()], maxlen=WINDOW + 1)


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
