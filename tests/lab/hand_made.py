"""Finished runs that nobody trained: with scores, losses and costs as a test wants them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tiny import tiny_experiment

from nanovlm.evaluation.evaluator import Item
from nanovlm.lab.results import Result

CATEGORIES = ("colour", "number")
PROVENANCE = {
    "versions": {"torch": "2.11"},
    "git": {"commit": "a" * 40, "changed": False},
    "source": "b" * 64,
    "hardware": {"label": "one H100", "device": "cuda"},
    "plugins": [],
    "data": "c" * 64,
    "data_order": "d" * 64,
    "initial_weights": {"vision_encoder": "e" * 64, "projector": "f" * 64, "language_decoder": "0" * 64},
}


@cache
def _experiment(*overrides: str) -> dict[str, Any]:
    return tiny_experiment(*overrides).model_dump()


def items(scores: Sequence[float], first: int = 0) -> list[Item]:
    """Questions by number, of two categories that take turns."""
    return [
        Item(f"item-{i}", f"question {i}?", f"said {i}: {score:g}", f"answer {i}", score, CATEGORIES[i % 2])
        for i, score in enumerate(scores, start=first)
    ]


def result(
    scores: Sequence[float] = (), factor: int = 2, seed: int = 0, benchmark: str = "shapes", **changes: Any
) -> Result:
    """A run of the tiny experiment; ``changes`` are of the summary."""
    experiment = _experiment(f"projector.factor={factor}", f"seed={seed}")
    summary: dict[str, Any] = {
        "steps": 3,
        "samples": 100,
        "samples_per_second": 50.0,
        "work": {"images": 100, "tokens": 2_000, "pairs": 50_000, "targets": 300},
        "wall_seconds": 9.0,
        "skipped": {},
        "precision": "bf16",
        "ranks": 1,
        "peak_memory_bytes": 2**30,
        "benchmarks": {},
    }
    answered = {benchmark: items(scores)} if scores else {}
    if answered:
        summary["benchmarks"] = {benchmark: {"questions": len(scores), "controls": {"shuffled": 0.1, "no_image": 0.1}}}
    folder = Path("runs", f"factor{factor}-s{seed}")
    return Result(folder, experiment, PROVENANCE, summary | changes, answered)


def with_provenance(run: Result, **changes: Any) -> Result:
    return replace(run, provenance=run.provenance | changes)


def with_losses(run: Result, sums: Sequence[float], targets: Sequence[int]) -> Result:
    losses = {("data.train.0", f"sample-{i}"): pair for i, pair in enumerate(zip(sums, targets, strict=True))}
    return replace(run, losses=losses)
