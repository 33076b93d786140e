"""How sure an accuracy, a loss or a difference is: intervals, p-values, and what would have been seen.

How the seeds and the items are both allowed for stands in ``crossed.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanovlm.evaluation.metrics import wilson
from nanovlm.lab.crossed import Spread, detectable, two_sided_p

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval. ``low`` and ``high`` are None where there is nothing to judge them by."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired difference, in the scores' own unit (accuracies: of 1, so 0.021 is 2.1 points).

    p: two-sided, for no difference; None where nothing can be said
    detectable: a true difference smaller than this would be missed more often than one time in five (80 % power)
    """

    p: float | None = None
    detectable: float | None = None


def mean_over_seeds_and_items(scores: ArrayLike) -> Estimate:
    """The accuracy of scores (S, I) in [0, 1]; a single seed's interval is Wilson's. ValueError: not such scores."""
    value, low, high = accuracy_interval(_scores(scores))
    return Estimate(float(value), float(low), float(high))


def paired_difference(variant: ArrayLike, baseline: ArrayLike) -> Difference:
    """What ``variant`` gains over ``baseline``: scores (S, I) in [0, 1] of the same seeds and items in the same order.

    ValueError: not such scores.
    """
    gained = _minus(_scores(variant), _scores(baseline))
    centre, spread = gain(gained)
    margin = spread.margin()
    return Difference(
        value=float(gained.mean()),
        low=float(max(-1.0, centre - margin)),
        high=float(min(1.0, centre + margin)),
        p=two_sided_p(float(centre), spread),
        detectable=min(1.0, detectable(spread)),
    )


def mean_loss(losses: ArrayLike, targets: ArrayLike) -> Estimate:
    """The loss a target: losses (S, I) are sums over the targets of each sample, targets (I,) their numbers.

    ValueError: shapes that do not fit. There is no interval of a single sample, of a loss that is not finite, nor one
    without a width.
    """
    value, spread = ratio(_grid(losses), targets)
    if spread is None:
        return Estimate(value)
    margin = float(spread.margin())
    return Estimate(value, value - margin, value + margin)


def loss_difference(variant: ArrayLike, baseline: ArrayLike, targets: ArrayLike) -> Difference:
    """By how much the loss a target of ``variant`` is above that of ``baseline``; all else as in ``mean_loss``."""
    value, spread = ratio(_minus(_grid(variant), _grid(baseline)), targets)
    if spread is None:
        return Difference(value)
    margin = float(spread.margin())
    p = two_sided_p(value, spread)
    return Difference(value, value - margin, value + margin, p=p, detectable=detectable(spread))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, raised so that one false alarm among all of them is as rare as it was in each (Holm 1979)."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def mcnemar(variant: ArrayLike, baseline: ArrayLike) -> float | None:
    """McNemar's exact two-sided p of two runs' 0/1 scores (I,); None where a score is graded.

    It speaks of these two checkpoints: two other seeds differ too, by an amount that it cannot know.
    """
    from scipy.stats import binomtest

    one, other = np.asarray(variant, dtype=float), np.asarray(baseline, dtype=float)
    gained = _minus(one, other)
    if not np.isin([one, other], (0, 1)).all():
        return None
    won, lost = int((gained > 0).sum()), int((gained < 0).sum())
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def accuracy_interval(scores: Array) -> tuple[Any, Any, Any]:
    """The mean of each grid of scores (..., S, I), and the ends of its interval in [0, 1].

    Wilson's interval (1927) of the number of answers whose mean would be as sure as that of the items is, widened for
    the seeds. One seed gives I answers, seeds that always agree give no more, and seeds that err independently S * I.
    """
    spread, value = Spread.of(scores), scores.mean((-2, -1))
    num_seeds, num_items = scores.shape[-2:]
    with np.errstate(divide="ignore", invalid="ignore"):  # all answers alike, or all items' means
        answers = value * (1 - value) / (spread.items * max(1, num_items - 1) / num_items)
    answers = np.clip(np.nan_to_num(answers, nan=num_items), num_items, num_seeds * num_items)
    centre, half = wilson(value, answers)
    low = value - spread.widened(value - centre + half)
    high = value + spread.widened(centre + half - value)
    return value, np.maximum(0, low), np.minimum(1, high)


def gain(gained: Array) -> tuple[Any, Spread]:
    """The centre of each interval of differences (..., S, I) in [-1, 1], and their spread.

    As if two more items had been asked, half a one gained and half a one lost: Agresti and Min's interval for paired
    proportions (2005, Statistics in Medicine 24:729), which has a width even where all answers agree.
    """
    by_item, count = gained.mean(-2), gained.shape[-1] + 2  # (..., I)
    centre = by_item.sum(-1) / count
    items = (((by_item**2).sum(-1) + 1) / count - centre**2) / count
    return centre, replace(Spread.of(gained), items=items, num_items=count)


def ratio(sums: Array, targets: ArrayLike) -> tuple[float, Spread | None]:
    """Sums (S, I) over targets (I,), and the spread of that ratio.

    To first order a ratio varies as the mean of its residuals, each over the mean number of targets (Cochran 1977,
    "Sampling Techniques", chapter 6).
    """
    counts = np.asarray(targets, dtype=float)
    if counts.shape != sums.shape[1:] or not counts.sum() > 0:
        raise ValueError(f"losses of {sums.shape[1]} samples need their numbers of targets, not {counts.shape} of them")
    value = float(sums.mean(0).sum() / counts.sum())
    if counts.size == 1 or not np.isfinite(value):
        return value, None
    spread = Spread.of((sums - value * counts) / counts.mean())
    return value, spread if spread.margin() > 0 else None


def _scores(scores: ArrayLike) -> Array:
    grid = _grid(scores)
    if not ((grid >= 0) & (grid <= 1)).all():
        raise ValueError("scores must lie in [0, 1]")
    return grid


def _grid(values: ArrayLike) -> Array:
    grid = np.asarray(values, dtype=float)
    if grid.ndim != 2 or not grid.size:
        raise ValueError(f"expected values of shape (seeds, items), not {grid.shape}")
    return grid


def _minus(variant: Array, baseline: Array) -> Array:
    if variant.shape != baseline.shape:
        raise ValueError(f"a paired difference needs equal shapes, not {variant.shape} and {baseline.shape}")
    return variant - baseline
