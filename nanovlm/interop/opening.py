"""A model by the name that a user gives: a run's folder, a model's folder, or a hub id."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from nanovlm.experiment import Experiment, load_experiment
from nanovlm.hub import CONFIG, fetch
from nanovlm.model import VisionLanguageModel
from nanovlm.model_folder import read_config
from nanovlm.plugins import Registries


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


def recorded_experiment(source: str) -> Experiment | None:
    """What the run that a model folder lies in was told to do."""
    file = Path(source).resolve().parent / "experiment.yaml"
    return load_experiment(file) if file.is_file() else None
