"""Which questions flipped: what one variant gets right and the other wrong."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from nanovlm.lab.comparison import Flip
from nanovlm.lab.shared import Asked

MOST_SEEDS = 0.5  # a question has flipped where the scores differ by more than this, as a mean over the seeds


def gains(asked: Asked, variant: str, baseline: str, seeds: Sequence[int]) -> list[list[float]]:
    """By question and seed: how much more of it the variant got right than the baseline."""
    by_seed = zip(asked.scores(variant, seeds), asked.scores(baseline, seeds), strict=True)
    differences = [[ours - theirs for ours, theirs in zip(*scores, strict=True)] for scores in by_seed]
    return [list(gained) for gained in zip(*differences, strict=True)]


def flips(asked: Asked, variant: str, baseline: str, seeds: Sequence[int]) -> list[Flip]:
    """Those of most seeds: the largest first, and of equal ones by category."""
    found = []
    for i, gained in enumerate(gains(asked, variant, baseline, seeds)):
        if abs(mean(gained)) > MOST_SEEDS:
            ours, theirs = ([asked.items[name][seed][i] for seed in seeds] for name in (variant, baseline))
            found.append(
                Flip(
                    benchmark=asked.benchmark,
                    variant=variant,
                    id=theirs[0].id,
                    question=theirs[0].question,
                    answer=theirs[0].answer,
                    category=theirs[0].category,
                    baseline_said=tuple(item.prediction for item in theirs),
                    variant_said=tuple(item.prediction for item in ours),
                    by_seed=tuple(gained),
                    gained=mean(gained),
                )
            )
    return sorted(found, key=lambda flip: (-abs(flip.gained), flip.category or "", flip.id))
