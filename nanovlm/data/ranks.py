"""The processes that train one model together, and what each of them takes of what belongs to all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One of ``world`` processes: number ``rank``, counted from 0."""

    rank: int = 0
    world: int = 1

    def share(self, things: Sequence[T]) -> Sequence[T]:
        """Which of them are this rank's: neighbours, and no rank has more than one more than another."""
        n = len(things)
        return things[self.rank * n // self.world : (self.rank + 1) * n // self.world]

    def positions(self, step: int, size: int, samples: int) -> Sequence[int]:
        """Where in a run of so many samples this rank's part of a step stands, in steps of one size."""
        return self.share(range(step * size, min((step + 1) * size, samples)))

    def takes(self, number: int) -> bool:
        """The same for things whose end nobody knows: every ``world``-th is this rank's."""
        return number % self.world == self.rank


ALONE = Ranks()
