"""Loss curves: the runs of a variant as one line, by samples and by time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanovlm.lab.comparison import VariantResult

Values = NDArray[np.float64]
SMOOTHED = 0.05  # of a run's logged steps: a window in which single steps no longer hide the course
REQUIRED = ("step", "loss", "samples", "seconds")


@dataclass(frozen=True)
class Curve:
    """A variant's training loss over its seeds; all arrays are (points,).

    samples, seconds: so far, evaluations left out; means over the runs
    loss, lowest, highest: of the smoothed losses of the runs
    lost: how many logged steps, of all runs, had no finite loss
    """

    samples: Values
    seconds: Values
    loss: Values
    lowest: Values
    highest: Values
    runs: int
    lost: int = 0


def loss_curve(variant: VariantResult) -> Curve | None:
    """At the steps that all runs have logged; None where there is none."""
    runs = [{int(event["step"]): event for event in result.curve if _is_told(event)} for result in variant.runs]
    lost = sum("loss" in event and not _is_told(event) for result in variant.runs for event in result.curve)
    steps = sorted(set.intersection(*map(set, runs))) if runs else []
    if not steps:
        return None
    smooth = np.stack([smoothed([run[step]["loss"] for step in run])[_places(run, steps)] for run in runs])
    return Curve(
        samples=_mean(runs, steps, "samples"),
        seconds=_mean(runs, steps, "seconds"),
        loss=smooth.mean(0),
        lowest=smooth.min(0),
        highest=smooth.max(0),
        runs=len(runs),
        lost=lost,
    )


def smoothed(values: Sequence[float], share: float = SMOOTHED) -> Values:
    """Each value's mean with its neighbours in a window of this share of all, which is cut short at the ends."""
    numbers = np.asarray(values, dtype=np.float64)
    half = int(share * len(numbers) / 2)
    sums = np.concatenate([[0.0], numbers.cumsum()])
    places = np.arange(len(numbers))
    first, last = np.maximum(places - half, 0), np.minimum(places + half, len(numbers) - 1)
    means: Values = (sums[last + 1] - sums[first]) / (last + 1 - first)
    return means


def _is_told(event: dict[str, Any]) -> bool:
    """A step whose samples were all skipped has no loss; a lost update's is no finite number."""
    return all(isinstance(event.get(key), int | float) and math.isfinite(event[key]) for key in REQUIRED)


def _places(run: dict[int, Any], steps: Sequence[int]) -> list[int]:
    numbers = {step: place for place, step in enumerate(run)}
    return [numbers[step] for step in steps]


def _mean(runs: Sequence[dict[int, Any]], steps: Sequence[int], key: str) -> Values:
    return np.array([[run[step][key] for step in steps] for run in runs], dtype=np.float64).mean(0)
