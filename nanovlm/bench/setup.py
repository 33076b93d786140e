"""What the parts of the benchmark have in common: the experiment made short, its model, its steps, its trainer."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from nanovlm.bench.split import DividedTrainer
from nanovlm.bench.synthetic import POOL, NothingHeldOut, SyntheticSteps, draw_step
from nanovlm.blueprint import Recipe
from nanovlm.data.loader import HeldOut, Steps
from nanovlm.experiment import FrozenUntil
from nanovlm.flops import Cost
from nanovlm.merging import BUDGETS
from nanovlm.model import VisionLanguageModel
from nanovlm.planning import check_lengths, check_streams
from nanovlm.training.launch import choose_packing, lay_out_steps, open_mixture
from nanovlm.training.precision import choose_device
from nanovlm.training.run import Run
from nanovlm.training.trackers import Trackers
from nanovlm.training.trainer import Parts


def with_training(recipe: Recipe, **options: Any) -> Recipe:
    """The same experiment with other training options."""
    training = recipe.experiment.training.model_copy(update=options)
    return replace(recipe, experiment=recipe.experiment.model_copy(update={"training": training}))


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The same experiment, that long. What is frozen at first only is trained, as for most of a run."""
    budget = dict.fromkeys(BUDGETS, 0) | {"steps": steps}
    return with_training(recipe, **budget, frozen_until_step=FrozenUntil())


def build_model(recipe: Recipe) -> VisionLanguageModel:
    """On its device and of its true size, with random weights: speed does not depend on them."""
    model = VisionLanguageModel(recipe.blueprint, recipe.experiment.seed)
    return model.to(choose_device(recipe.experiment.device))


def synthetic_steps(recipe: Recipe, model: VisionLanguageModel) -> SyntheticSteps:
    config, limit, seed = recipe.experiment.training, recipe.experiment.data.max_text_tokens, recipe.experiment.seed
    packing, pinned = choose_packing(recipe, model), model.device.type == "cuda"
    pool = [draw_step(model, packing, limit, config.samples_per_step, seed, i, pinned=pinned) for i in range(POOL)]
    return SyntheticSteps(pool[: config.steps], config.steps)


def build_trainer(recipe: Recipe, synthetic: bool) -> DividedTrainer:
    """About to take its first step: on synthetic samples, or on the experiment's own."""
    check_streams(recipe)
    cost = lru_cache(partial(Cost.of, check_lengths(recipe)))
    model = build_model(recipe)
    steps: Steps
    held_out: HeldOut
    if synthetic:
        steps, held_out = synthetic_steps(recipe, model), NothingHeldOut()
        data = recipe.experiment.data.model_copy(update={"workers": 0})  # there is nothing to prepare
        recipe = replace(recipe, experiment=recipe.experiment.model_copy(update={"data": data}))
    else:
        steps, held_out = lay_out_steps(recipe, model, open_mixture(recipe))
    run = Run(Path(), recipe.experiment.name)  # in which nothing is written
    files = recipe.registries.files
    return DividedTrainer(Parts(recipe.experiment, model, steps, held_out, [], Trackers([]), run, cost, files))
