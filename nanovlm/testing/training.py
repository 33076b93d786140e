"""Does it work under the trainer? The real one, in a temporary folder, with companions in all other places."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from nanovlm.blueprint import ROLES, Recipe
from nanovlm.data.dataset import Benchmark
from nanovlm.experiment import parse_experiment
from nanovlm.testing.checks import NotHere, Subject, Violation, check, doing
from nanovlm.testing.companions import NAME, beside
from nanovlm.testing.language_decoders import ROOM
from nanovlm.testing.models import MODELS, tiny
from nanovlm.training.launch import train_recipe

STEPS = 5
RATES = (1e-2, 1e-3)  # one of them suits nearly everything that can learn


class Trained(NamedTuple):
    """What came of a run: the loss of each step that had one, and why samples were skipped."""

    losses: list[float]
    skipped: dict[str, int]


@check(*MODELS, "dataset")
def learns_under_the_trainer(subject: Subject) -> None:
    """trains for five steps with the loss falling: a model's component alone, a dataset with a small model."""
    if subject.kind == "dataset":
        _require_training_samples(subject)
    alone = subject.kind in MODELS and any(True for _ in tiny(subject).parameters())
    seen = []
    for rate in RATES:
        rates = dict.fromkeys(ROLES, 0.0) | {subject.kind: rate} if alone else dict.fromkeys(ROLES, rate)
        trained = run(subject, learning_rate=rates)
        if len(trained.losses) < 2:
            raise Violation(
                f"gives the trainer something to learn in {len(trained.losses)} of {STEPS} steps, so most samples were "
                f"skipped: {trained.skipped}"
            )
        if trained.losses[-1] < trained.losses[0]:
            return
        seen.append(trained.losses)
    shown = "; ".join(" ".join(f"{loss:.4g}" for loss in losses) for losses in seen)
    raise Violation(
        f"does not bring the loss down in {STEPS} steps, at learning rates of {' and '.join(map(str, RATES))}: {shown}"
    )


def _require_training_samples(subject: Subject) -> None:
    dataset = subject.cls(subject.config, "train")
    if issubclass(subject.cls, Benchmark) and not dataset.streaming and not len(dataset):
        raise NotHere("its train split is empty: it only asks questions")


@check("tracker")
def watching_changes_nothing(subject: Subject) -> None:
    """watches a run from its start to its end, and the run is the same as without it."""
    watched, unwatched = run(subject), run(subject, trackers=[])
    if watched.losses != unwatched.losses:
        raise Violation(
            f"changes the run that it watches: its losses are {watched.losses}, without it {unwatched.losses}; a "
            "tracker only watches, and writes into files of its own"
        )


def run(subject: Subject, **changes: Any) -> Trained:
    """A short run on a CPU in fp32, all of it in a folder that goes again. ``learning_rate`` and any other key."""
    rates = changes.pop("learning_rate", dict.fromkeys(ROLES, RATES[0]))
    registries = beside(subject.kind, subject.entry, subject.registries.files)
    recipe = Recipe.of(parse_experiment(_experiment(subject, rates) | changes), registries)
    with TemporaryDirectory() as folder, doing("under the trainer", subject):
        place = Path(folder) / "run"
        summary = train_recipe(recipe, place)
        events = [json.loads(line) for line in (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [event["loss"] for event in events if event.get("event") == "step" and "loss" in event]
    losses = [math.nan if loss is None else loss for loss in losses]  # JSON has no NaN
    return Trained(losses, summary.get("skipped", {}))


def _experiment(subject: Subject, rates: dict[str, float]) -> dict[str, Any]:
    """Four samples a step; of the companions' data there are no more, so that each step sees the same."""
    tested = {"name": subject.entry.name, **subject.config.model_dump(exclude_unset=True)}
    chosen = {kind: tested if kind == subject.kind else {"name": NAME} for kind in (*ROLES, "dataset")}
    if subject.kind == "dataset":  # may have long samples
        chosen["language_decoder"] = {"name": NAME, "max_positions": 8192}
    text, images = (4096, 64) if subject.kind == "dataset" else (ROOM - 4, 1)
    return {
        "name": "check",
        **{role: chosen[role] for role in ROLES},
        "data": {
            "train": [chosen["dataset"]],
            "validation": {"share": 0.0},
            "max_text_tokens": text,
            "max_images": images,
            "workers": 0,
        },
        "training": {
            "steps": STEPS,
            "samples_per_step": 4,
            "learning_rate": rates,
            "weight_decay": 0.0,
            "schedule": "constant",
            "warmup": 0.0,
            "precision": "fp32",
        },
        "checkpoints": {"every": 0},
        "device": "cpu",
        "trackers": [tested] if subject.kind == "tracker" else [],
    }
