"""From an experiment to a finished run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nanovlm.blueprint import Recipe, open_benchmark, open_dataset
from nanovlm.data.loader import HeldOut, Mixture, Packing, Preparation, Steps
from nanovlm.evaluation.evaluator import Questions, numbered
from nanovlm.experiment import Experiment
from nanovlm.model import VisionLanguageModel
from nanovlm.planning import check_lengths
from nanovlm.plugins import load_plugins
from nanovlm.seeding import seeded
from nanovlm.training.precision import choose_device
from nanovlm.training.run import MetricsLog, Run
from nanovlm.training.trainer import Parts, Trainer


def train(
    experiment: Experiment, run_dir: str | Path | None = None, plugin_files: Sequence[str] = ()
) -> dict[str, Any]:
    """Train and evaluate ``experiment``; what ``summary.json`` holds, and ``run``, the folder it is in.

    Raises NanoVLMError, before anything is trained, for whatever in the experiment cannot work.
    """
    recipe = Recipe.of(experiment, load_plugins(plugin_files))
    check_lengths(recipe)
    device = choose_device(experiment.device)
    mixture = open_mixture(recipe)
    benchmarks = open_benchmarks(recipe)
    model = VisionLanguageModel(recipe.blueprint, experiment.seed)
    model.load_pretrained()
    steps, held_out = lay_out_steps(recipe, model, mixture)
    run = Run.create(recipe, run_dir)
    run.record_provenance(recipe, model, data_order=fingerprint_order(mixture, steps))
    trackers = [MetricsLog(MetricsLog.Config(), run), *(part.cls(part.config, run) for part in recipe.trackers)]
    parts = Parts(experiment, model.to(device), steps, held_out, benchmarks, trackers, run, recipe.registries.files)
    with seeded(experiment.seed, "training"):  # dropout and the like; the caller's generator stays untouched
        summary = Trainer(parts).train()
    return summary | {"run": str(run.folder)}


def open_mixture(recipe: Recipe) -> Mixture:
    """The experiment's training data."""
    datasets = [open_dataset(part, "train") for part in recipe.datasets]
    weights = [choice.weight for choice in recipe.experiment.data.train]
    return Mixture(datasets, weights, recipe.experiment.data, recipe.experiment.seed)


def open_benchmarks(recipe: Recipe) -> list[Questions]:
    """The experiment's benchmarks; a second one of a name is called ``name-2``."""
    names = numbered([part.name for part in recipe.benchmarks])
    chosen = zip(names, recipe.benchmarks, recipe.experiment.benchmarks, strict=True)
    return [Questions(name, open_benchmark(part), choice.limit) for name, part, choice in chosen]


def lay_out_steps(recipe: Recipe, model: VisionLanguageModel, mixture: Mixture) -> tuple[Steps, HeldOut]:
    """What each step trains on, and what is validated on."""
    config, data = recipe.experiment.training, recipe.experiment.data
    prepare = Preparation(model.text, model.vision_encoder.image, data)
    packing = Packing(model.num_image_tokens, config.tokens_per_row, config.images_per_row)
    samples = config.samples or config.steps * config.samples_per_step or math.ceil(config.epochs * mixture.epoch_size)
    steps = Steps(mixture, prepare, packing, config.samples_per_step, samples)
    return steps, HeldOut(mixture, prepare, packing, config.samples_per_step)


def fingerprint_order(mixture: Mixture, steps: Steps) -> str:
    """A hash of which sample comes when: equal for two runs that see the same samples in the same order."""
    digest = hashlib.sha256(f"{steps.samples}:{steps.samples_per_step}".encode())
    for dataset, indices in zip(mixture.datasets, mixture.train, strict=True):
        digest.update("".join(dataset.id(i) for i in indices.tolist()).encode())
    digest.update(mixture.order(0).to(torch.int64).numpy().tobytes())
    return digest.hexdigest()
