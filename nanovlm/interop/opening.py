"""A model by the name that a user gives: a run's folder, a model's folder, or a hub id."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from nanovlm.experiment import Experiment, Named, load_experiment
from nanovlm.hub import CONFIG, fetch
from nanovlm.model import VisionLanguageModel
from nanovlm.model_folder import read_config
from nanovlm.plugins import Registries
from nanovlm.recorded_plugins import of_run
from nanovlm.training.run import Run
from nanovlm.weights import read_json


def find_model(model: str) -> str:
    """A model folder or hub id, checked to be one; a run stands for its last model."""
    source = str(Path(model, "model")) if Path(model, "model", "config.json").is_file() else model
    read_config(fetch(source, CONFIG, option="model"))
    return source


def load_model(source: str, registries: Registries, device: str, tokenizer: str = "") -> VisionLanguageModel:
    """The model that ``find_model`` found, with its tokenizer; what it warns of is told in our words alone."""
    with warnings.catch_warnings(record=True) as caught:
        loaded = VisionLanguageModel.from_pretrained(source, registries, device, tokenizer)
    for warning in caught:
        print(f"nanovlm: {warning.message}", file=sys.stderr)
    return loaded


def check_benchmark(source: str, benchmark: Named, registries: Registries) -> None:
    """PluginError, with the package that had it, for a benchmark of the model's run that is not installed any more."""
    run = Run(Path(source).resolve().parent, "")
    experiment = recorded_experiment(source)
    if experiment is None or not run.has_begun:
        return
    asked = {f"benchmarks.{i}": choice for i, choice in enumerate(experiment.benchmarks)}
    same = {where: choice for where, choice in asked.items() if choice.name == benchmark.name}
    for remark in of_run(run.folder, read_json(run.provenance)).check(same, registries):
        print(f"nanovlm: {remark}", file=sys.stderr)


def recorded_experiment(source: str) -> Experiment | None:
    """What the run that a model folder lies in was told to do."""
    file = Path(source).resolve().parent / "experiment.yaml"
    return load_experiment(file) if file.is_file() else None
