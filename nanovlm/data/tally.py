"""What became of a run's samples: nothing is dropped in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from nanovlm.data.origins import samples_by_origin
from nanovlm.errors import DataError

if TYPE_CHECKING:
    from nanovlm.data.loader import Step

HOPELESS = 1000  # samples, all of them skipped: a run that goes on like this learns nothing


class Tally:
    """The sums of what the steps counted (see ``Step``)."""

    def __init__(self) -> None:
        self.used = 0
        self.skipped: Counter[str] = Counter()
        self.first_skipped: dict[str, str] = {}
        self.left_out: Counter[str] = Counter()
        self.origins: Counter[tuple[str, str]] = Counter()

    def add(self, step: Step, last: bool, alone: bool = True) -> None:
        """Raises DataError where, up to the ``last`` step or for too long, not one sample could be used.

        Not so where one of several processes counts, and not ``alone``: others may have found some.
        """
        self.used += step.num_samples
        self.skipped += step.skipped
        self.first_skipped = step.first_skipped | self.first_skipped
        self.left_out += step.left_out
        self.origins += step.tally
        if alone and not self.used and (last or self.skipped.total() >= HOPELESS):
            raise DataError(f"every sample was skipped: {describe(self.skipped, self.first_skipped)}")

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        origins = [[*key, count] for key, count in self.origins.items()]
        return {
            "used": self.used,
            "skipped": self.skipped,
            "first_skipped": self.first_skipped,
            "left_out": self.left_out,
            "origins": origins,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        self.used, self.skipped, self.left_out = state["used"], Counter(state["skipped"]), Counter(state["left_out"])
        self.first_skipped = dict(state.get("first_skipped", {}))  # checkpoints of 0.1.0 have none
        self.origins = Counter({(place, reason): count for place, reason, count in state["origins"]})

    @classmethod
    def together(cls, states: Iterable[dict[str, Any]]) -> Tally:
        """What several processes counted."""
        tally, part = cls(), cls()
        for state in states:
            part.restore(state)
            tally.used += part.used
            tally.skipped += part.skipped
            tally.first_skipped = part.first_skipped | tally.first_skipped
            tally.left_out += part.left_out
            tally.origins += part.origins
        return tally

    def summary(self) -> dict[str, Any]:
        return {
            "skipped": dict(self.skipped),
            "first_skipped": dict(self.first_skipped),
            "wholly_skipped": wholly_skipped(self.origins),
            "turns_left_out": dict(self.left_out),
            "given": samples_by_origin(self.origins),
        }


def wholly_skipped(tally: Counter[tuple[str, str]]) -> list[str]:
    """A sentence for each dataset or subset that came up in a run without one sample that could be used."""
    reasons: dict[str, Counter[str]] = {}
    for (place, reason), count in tally.items():
        reasons.setdefault(place, Counter())[reason] += count
    return [
        f"{place}: all {found.total()} of its samples that came up were skipped ({describe(found)})"
        for place, found in sorted(reasons.items())
        if not found[""]
    ]


def describe(counts: Counter[str], first: Mapping[str, str] | None = None) -> str:
    """Counts by reason in words, the most frequent reason first; with the id of the ``first`` one of each."""
    found = sorted((-count, reason) for reason, count in counts.items() if count)
    ids = {reason: f" (first {name})" for reason, name in (first or {}).items()}
    return ", ".join(f"{-count} {reason}{ids.get(reason, '')}" for count, reason in found) or "none"
