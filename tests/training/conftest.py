"""Finished runs, a fraction of a second each."""

from functools import lru_cache, partial
from itertools import count
from typing import Any

import pytest
from finished import FAULTY, Finished
from tiny import tiny_experiment, tiny_recipe

from nanovlm import VisionLanguageModel, train
from nanovlm.flops import Cost
from nanovlm.planning import check_lengths
from nanovlm.training.launch import lay_out_steps, open_benchmarks, open_mixture
from nanovlm.training.precision import choose_device
from nanovlm.training.run import Run
from nanovlm.training.trackers import MetricsLog, Trackers
from nanovlm.training.trainer import Parts, Trainer


@pytest.fixture
def run(tmp_path):
    """``run(*overrides)`` trains the tiny experiment in a folder of its own."""
    numbers = count()

    def run(*overrides: str, **options: Any) -> Finished:
        folder = tmp_path / f"run-{next(numbers)}"
        return Finished(folder, train(tiny_experiment(*overrides), folder, **options))

    return run


@pytest.fixture
def trainer(tmp_path):
    """``trainer(*overrides)`` is about to take its first step."""
    numbers = count()

    def trainer(*overrides: str) -> Trainer:
        recipe = tiny_recipe(*overrides)
        model = VisionLanguageModel(recipe.blueprint, recipe.experiment.seed)
        model.to(choose_device(recipe.experiment.device))
        steps, held_out = lay_out_steps(recipe, model, open_mixture(recipe))
        folder = Run.create(recipe, tmp_path / f"trained-{next(numbers)}")
        log = Trackers([MetricsLog(MetricsLog.Config(), folder)])
        cost = lru_cache(partial(Cost.of, check_lengths(recipe)))
        return Trainer(Parts(recipe.experiment, model, steps, held_out, open_benchmarks(recipe), log, folder, cost))

    return trainer


@pytest.fixture
def faulty():
    """Overrides and options of a run whose samples of these numbers are broken."""

    def faulty(size: int, broken: list[int]) -> dict[str, Any]:
        dataset = f"data.train=[{{name: faulty, size: {size}, broken: {broken}}}]"
        return {"override": dataset, "plugin_files": [str(FAULTY)]}

    return faulty
