"""From scores to an accuracy with an interval."""

from collections.abc import Sequence
from typing import Any

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


def accuracy(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def wilson_interval(scores: Sequence[float]) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927); for graded scores in [0, 1] it is on the wide side."""
    centre, half = wilson(accuracy(scores), len(scores))
    return max(0.0, centre - half), min(1.0, centre + half)


def wilson(p: Any, n: Any) -> tuple[Any, Any]:
    """Centre and half width of the interval of a proportion ``p`` of ``n``: numbers, or arrays of many at once."""
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * (p * (1 - p) / n + Z95**2 / (4 * n**2)) ** 0.5
    return centre, half
