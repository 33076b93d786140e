"""A comparison made by hand: three variants, three seeds, two benchmarks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanovlm.lab.comparison import Comparison, Costs, Flip, Score, Unfinished, VariantResult
from nanovlm.lab.results import Result
from nanovlm.lab.statistics import Difference, Estimate

SEEDS = (0, 1, 2)
HOSTILE = "<script>document.title = 'taken over'</script>"  # what a data set may hold


def estimate(value: float, half: float = 0.03) -> Estimate:
    return Estimate(value, value - half, value + half)


def difference(value: float, half: float = 0.013, p: float = 0.004) -> Difference:
    return Difference(value, value - half, value + half, p, 0.024)


def curve(level: float, seed: int, speed: float = 1.0, steps: int = 200) -> list[dict[str, Any]]:
    """Step events whose loss goes down to ``level``, with a wave for noise."""
    return [
        {
            "event": "step",
            "step": step,
            "loss": level * (0.95 + 0.05 * seed) + 4 * math.exp(-step / 25) + 0.1 * level * math.sin(step * (seed + 2)),
            "samples": 32 * step,
            "seconds": 0.1 * step / speed,
        }
        for step in range(1, steps + 1)
    ]


def result(folder: Path, seed: int, level: float, speed: float = 1.0) -> Result:
    return Result(folder, {"seed": seed}, {}, {}, {}, curve=curve(level, seed, speed))


def score(accuracy: float, gained: float | None, categories: dict[str, float], sentence: str, **more: Any) -> Score:
    return Score(
        accuracy=estimate(accuracy),
        questions=600,
        controls={"shuffled": 0.34, "no_image": 0.28},
        categories={name: estimate(value, 0.05) for name, value in categories.items()},
        difference=None if gained is None else difference(gained),
        p_holm=None if gained is None else 0.008 if abs(gained) > 0.02 else 0.31,
        sentence=sentence,
        **more,
    )


def variant(
    name: str, changes: dict[str, object], level: float, costs: Costs, scores: dict[str, Score]
) -> VariantResult:
    return VariantResult(
        name=name,
        changes=changes,
        runs=tuple(
            result(Path("runs", name, f"s{seed}"), seed, level, costs.samples_per_second / 300) for seed in SEEDS
        ),
        seeds=SEEDS,
        costs=costs,
        scores=scores,
        validation_loss=estimate(level, 0.01),
        validation_difference=None if not changes else difference(level - 0.20, 0.01),
    )


def costs(tokens: int, flops: float, speed: float, **more: Any) -> Costs:
    known: dict[str, Any] = dict(
        parameters=657_024, image_tokens=tokens, flops_per_sample=flops, samples=9600, samples_per_second=speed,
        peak_memory_bytes=2**30, wall_seconds=9600 / speed + 20, skipped_samples=3,
    )  # fmt: skip
    return Costs(**(known | more))


def flip(number: int, variant: str, gained: float, **more: Any) -> Flip:
    category = ("colour", "kind", "place", "number")[number % 4]
    known: dict[str, Any] = dict(
        benchmark="shapes", variant=variant, id=f"shapes-0-test-{number}", question=f"What colour is it ({number})?",
        answer="red", category=category, baseline_said=("blue", "blue", "red"), variant_said=("red", "red", "red"),
        gained=gained, by_seed=tuple(math.copysign(i < round(3 * abs(gained)), gained) for i in range(3)),
    )  # fmt: skip
    return Flip(**(known | more))


def comparison(**changes: Any) -> Comparison:
    """One that has something of everything; ``changes`` replace fields of it."""
    places = {"colour": 0.93, "kind": 0.88, "place": 0.55, "number": 0.71}
    less = {name: value - 0.06 for name, value in places.items()}
    worse = "factor=4: -6.0 points [-7.3, -4.7] against factor=2, 38 % fewer FLOPs, 1.6 x the speed: worse, cheaper"
    unseen = "factor=1: no difference seen; with 3 seeds and 600 items one under 2.4 points would be missed"
    also_unseen = unseen.replace("factor=1", "factor=4")
    blind = "does no better than without pictures (28.0 %): it does not look"
    made = Comparison(
        name="pixel_shuffle",
        baseline="factor=2",
        benchmarks=("shapes", "mmstar"),
        variants=(
            variant(
                "factor=2", {}, 0.20, costs(16, 0.41e9, 300.0),
                {"shapes": score(0.77, None, places, ""), "mmstar": score(0.30, None, {}, "", flags=(blind,))},
            ),
            variant(
                "factor=1", {"projector.factor": 1}, 0.19, costs(64, 0.95e9, 140.0),
                {"shapes": score(0.778, 0.008, places, unseen), "mmstar": score(0.31, 0.01, {}, unseen)},
            ),
            variant(
                "factor=4", {"projector.factor": 4}, 0.31, costs(4, 0.26e9, 480.0),
                {"shapes": score(0.71, -0.06, less, worse), "mmstar": score(0.31, 0.01, {}, also_unseen)},
            ),
        ),
        flips=(
            *(flip(i, "factor=4", -1.0) for i in range(6)),
            *(flip(i, "factor=1", 1.0 if i % 3 else -2 / 3) for i in range(6, 12)),
            flip(12, "factor=1", 1.0, benchmark="mmstar", category=None, question=f"Is it {HOSTILE}?", answer=HOSTILE),
        ),
        unpaired=("factor=4, seed 1: the training data differ",),
        unfinished=(Unfinished("factor=4", 2, "failed", "out of memory", "factor=4/s2.log"),),
        notes=("factor=4 has 2 of 3 seeds",),
    )  # fmt: skip
    return replace(made, **changes)
