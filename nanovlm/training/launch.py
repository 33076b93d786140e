"""From an experiment to a finished run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from nanovlm.attention import varlen_obstacle
from nanovlm.blueprint import Recipe, choices_of, collected, open_benchmark, open_dataset
from nanovlm.data.filling import Filling
from nanovlm.data.loader import HeldOut, Packing, Preparation, Steps
from nanovlm.data.mixture import Mixture
from nanovlm.data.ranks import ALONE, Ranks
from nanovlm.data.stream import Stream, StreamedHeldOut, StreamedSteps
from nanovlm.errors import ConfigError
from nanovlm.evaluation.evaluator import Questions, numbered
from nanovlm.evaluation.overlap import find_overlap
from nanovlm.experiment import Experiment
from nanovlm.flops import Cost
from nanovlm.hub import Unreachable
from nanovlm.model import VisionLanguageModel
from nanovlm.planning import check_adapters, check_lengths, check_stream, check_streams
from nanovlm.plugins import load_plugins
from nanovlm.recorded_plugins import check_own_files
from nanovlm.seeding import seeded
from nanovlm.training.blocks import compiles
from nanovlm.training.distributed import Group
from nanovlm.training.precision import Precision, choose_device
from nanovlm.training.run import Run
from nanovlm.training.trackers import MetricsLog, Trackers
from nanovlm.training.trainer import CostOf, Parts, Trainer

BY_NUMBER: tuple[Any, Any] = Steps, HeldOut
STREAMED: tuple[Any, Any] = StreamedSteps, StreamedHeldOut
JUDGED_SAMPLES = 256  # whose mean cost decides how many samples a budget of FLOPs pays for


def train(
    experiment: Experiment, run_dir: str | Path | None = None, plugin_files: Sequence[str] = ()
) -> dict[str, Any]:
    """Train and evaluate ``experiment``; what ``summary.json`` holds, and ``run``, the folder it is in.

    Started by ``torchrun``, this is one of several processes that train together. Raises NanoVLMError, before anything
    is trained, for whatever in the experiment cannot work, and Stopped where the run is told to end (Ctrl-C, SIGTERM).
    """
    registries = load_plugins(plugin_files)
    remarks = check_own_files(choices_of(experiment), registries)
    return train_recipe(Recipe.of(experiment, registries), run_dir, remarks)


def train_recipe(recipe: Recipe, run_dir: str | Path | None = None, remarks: Sequence[str] = ()) -> dict[str, Any]:
    """``train`` with components from registries of the caller's own. ``remarks`` are told as the run starts."""
    experiment, cost = recipe.experiment, check(recipe)
    with Group.from_environment(experiment.device, experiment.training.rank_timeout) as group:
        model, mixture, benchmarks = open_everything(recipe, group.device)
        steps, held_out = lay_out_steps(recipe, model, mixture, group.ranks)
        data = fingerprint_data(mixture)
        hashes = {"data": data, "data_order": fingerprint_order(data, mixture, group.ranks)}
        group.agree("the experiment and its data", [recipe.dump(), hashes, steps.samples])
        run = group.on_main(lambda: Run.create(recipe, run_dir))
        with run.locked() if group.is_main else nullcontext():
            if group.is_main:
                run.record_provenance(recipe, model, hashes)
            trackers, files = open_trackers(recipe, run, group), recipe.registries.files
            notes = [*remarks, *find_overlap(recipe, mixture, benchmarks)]
            parts = Parts(
                experiment, model, steps, held_out, benchmarks, trackers, run, cost, files, notes=notes, group=group
            )
            return carry_out(parts)


def carry_out(parts: Parts) -> dict[str, Any]:
    """Train; the caller's randomness stays untouched."""
    with seeded(parts.experiment.seed, "training"):
        summary = Trainer(parts).train()
    return summary | {"run": str(parts.run.folder)}


def check(recipe: Recipe) -> CostOf:
    """Raises ConfigError for what needs no weights and no data to be found out; what a row costs."""
    check_streams(recipe)
    check_adapters(recipe)
    choose_device(recipe.experiment.device)
    return lru_cache(partial(Cost.of, check_lengths(recipe)))


def open_trackers(recipe: Recipe, run: Run, group: Group) -> Trackers:
    """Those of the run; none on a rank that is not the first."""
    if not group.is_main:
        return Trackers([])
    return Trackers([MetricsLog(MetricsLog.Config(), run), *(part.cls(part.config, run) for part in recipe.trackers)])


def open_everything(
    recipe: Recipe, device: torch.device, pretrained: bool = True
) -> tuple[VisionLanguageModel, Mixture | Stream, list[Questions]]:
    """The model on its device, with its ``pretrained`` weights, the training data and the benchmarks.

    Weights come first: the smallest download. Without network one error names all that is to be pointed at folders.
    """
    with collected(only=Unreachable) as problems:
        with problems:
            model = VisionLanguageModel(recipe.blueprint, recipe.experiment.seed)
            if pretrained:
                model.load_pretrained()
            model.to(device)
        with problems:
            mixture = open_mixture(recipe)
        with problems:
            benchmarks = open_benchmarks(recipe)
    return model, mixture, benchmarks


def open_mixture(recipe: Recipe) -> Mixture | Stream:
    """The experiment's training data."""
    datasets = [open_dataset(part, "train") for part in recipe.datasets]
    weights = [choice.weight for choice in recipe.experiment.data.train]
    streams = [d for d, dataset in enumerate(datasets) if dataset.streaming]
    if not streams:
        return Mixture(datasets, weights, recipe.experiment.data, recipe.experiment.seed)
    check_stream(recipe, streams[0])
    return Stream(datasets[0], recipe.experiment.data, recipe.experiment.seed)


def open_benchmarks(recipe: Recipe) -> list[Questions]:
    """The experiment's benchmarks; a second one of a name is called ``name-2``."""
    names = numbered([part.name for part in recipe.benchmarks])
    chosen = zip(names, recipe.benchmarks, recipe.experiment.benchmarks, strict=True)
    return [Questions(name, open_benchmark(part), choice.limit) for name, part, choice in chosen]


def lay_out_steps(
    recipe: Recipe, model: VisionLanguageModel, mixture: Mixture | Stream, ranks: Ranks = ALONE
) -> tuple[Steps, HeldOut]:
    """What a rank trains on in each step, and what it validates on. The model is on its device already."""
    config = recipe.experiment.training
    new_steps, new_held_out = STREAMED if isinstance(mixture, Stream) else BY_NUMBER
    prepare = Preparation(model.text, model.vision_encoder.image, recipe.experiment.data)
    common = mixture, prepare, choose_packing(recipe, model), config.samples_per_step
    samples = config.samples or config.steps * config.samples_per_step
    if isinstance(mixture, Mixture) and config.epochs:
        samples = math.ceil(config.epochs * mixture.epoch_size)
    elif config.flops:
        samples = affordable(config.flops, recipe, new_steps(*common, JUDGED_SAMPLES))  # on every rank the same
    return new_steps(*common, samples, ranks), new_held_out(*common, ranks)


def choose_packing(recipe: Recipe, model: VisionLanguageModel) -> Packing:
    """How samples become rows: filled up where compiled graphs, or varlen attention, profit by it."""
    config, data, decoder = recipe.experiment.training, recipe.experiment.data, model.language_decoder
    filling = None
    varlen = not varlen_obstacle(model.device, Precision(config.precision, model.device).dtype)
    if decoder.varlen and (varlen or compiles(config, model.device)):
        longest = data.longest_sample(model.num_image_tokens)
        filling = Filling.of(config.tokens_per_row, config.samples_per_step, longest, varlen)
    return Packing(model.num_image_tokens, config.tokens_per_row, config.images_per_row, filling)


def affordable(flops: float, recipe: Recipe, first: Steps) -> int:
    """How many samples a budget pays for if all cost as much as the ``first``; ConfigError if not one."""
    cost = Cost.of(check_lengths(recipe), recipe.experiment.training.trained_roles)
    tasks = iter(first.tasks())
    try:
        a_sample = cost.of_rows(row for task in tasks for row in first[task].rows) / first.samples
    finally:
        if isinstance(tasks, Generator):
            tasks.close()  # a stream is being read
    if flops < a_sample:
        raise ConfigError(f"training.flops={flops:g}: one sample costs about {a_sample:.1e}; raise it")
    return int(flops / a_sample)


def fingerprint_data(mixture: Mixture | Stream) -> str:
    """A hash of the samples, whatever the run's seed: it is of all ids, and of the content of some (see there)."""
    digest = hashlib.sha256()
    for part in mixture.fingerprint():
        digest.update(len(part).to_bytes(8, "big"))  # else bytes could move from one part to the next
        digest.update(part)
    return digest.hexdigest()


def fingerprint_order(data: str, mixture: Mixture | Stream, ranks: Ranks) -> str:
    """A hash of which sample comes when, whatever the number of them that a run sees. ``data``: their own hash."""
    return hashlib.sha256(data.encode() + mixture.fingerprint_of_order(ranks)).hexdigest()
