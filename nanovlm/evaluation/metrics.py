"""From scores to an accuracy with an interval."""

from collections.abc import Sequence
from math import sqrt

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


def accuracy(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def wilson_interval(scores: Sequence[float]) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927); for graded scores in [0, 1] it is on the wide side."""
    n, p = len(scores), accuracy(scores)
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)
