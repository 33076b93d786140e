"""Every file in ``experiments/ablations``, whoever wrote it: planned without network, and trained at tiny size."""

import json
import math
from functools import cache
from pathlib import Path

import pytest
from test_experiments import FOLDER, REGISTRIES, tiny_overrides

from nanovlm import Experiment, train
from nanovlm.experiment import parse_experiment, read_experiment
from nanovlm.lab.ablation import Ablation, load_ablation
from nanovlm.lab.prospect import Prospect, plan_ablation
from nanovlm.merging import ABLATE

FILES = sorted((FOLDER / "ablations").glob("*.yaml"))
TRAINED = 2  # variants of each file, at tiny size

every_file = pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])


@cache
def planned(file: Path) -> tuple[Ablation, Prospect]:
    ablation = load_ablation(file)
    return ablation, plan_ablation(ablation, REGISTRIES)


def tiny_variants(file: Path) -> list[Experiment]:
    """The first variants, of an experiment whose components are tiny wherever the variant does not say otherwise."""
    tree = read_experiment(file)
    del tree[ABLATE]
    ablation = load_ablation(file, tiny_overrides(parse_experiment(tree)))
    return [variant.experiment(ablation.seeds[0]) for variant in ablation.variants[:TRAINED]]


def image_tokens(file: str) -> dict[str, int]:
    _, prospect = planned(FOLDER / "ablations" / file)
    return {name: plan.image_tokens for name, plan in prospect.plans.items()}


def test_the_ready_ones_are_there():
    assert {file.stem for file in FILES} >= {"pixel_shuffle", "pixel_shuffle_baseline", "projectors", "freezing"}


@every_file
def test_it_is_planned_without_network(file):
    ablation, prospect = planned(file)
    assert ablation.name == file.stem
    assert list(prospect.plans) == [variant.name for variant in ablation.variants]
    assert len(ablation.seeds) >= 3  # fewer say little about settings
    assert all(variant.experiment(0).data.validation.share > 0 for variant in ablation.variants)


@every_file
def test_it_says_on_top_how_it_is_started(file):
    comment = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    assert f"#   nanovlm ablate experiments/ablations/{file.name}" in comment


@every_file
def test_its_first_variants_train_at_tiny_size(file, tmp_path):
    ordered, losses = [], []
    for i, experiment in enumerate(tiny_variants(file)):
        run = tmp_path / f"run-{i}"
        summary = train(experiment, run)
        assert (summary["name"], summary["steps"]) == (experiment.name, 2)
        ordered.append(json.loads((run / "provenance.json").read_text())["data_order"])
        events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([event["loss"] for event in events if event["event"] == "step"])
    assert len(set(ordered)) == 1  # no axis of these touches the data
    assert all(math.isfinite(loss) and loss > 0 for each in losses for loss in each)


def test_what_the_ready_ones_ask():
    assert image_tokens("pixel_shuffle.yaml") == {"factor=2": 4, "factor=1": 16, "factor=4": 1}
    assert image_tokens("pixel_shuffle_baseline.yaml") == {"factor=2": 49, "factor=1": 196, "factor=7": 4}
    projectors = {"pixel_shuffle": 4, "average_pool": 4, "resampler": 4, "mlp": 16}
    assert image_tokens("projectors.yaml") == {f"projector={name}": tokens for name, tokens in projectors.items()}


def test_the_baselines_pixel_shuffle_is_the_222_million_model():
    _, prospect = planned(FOLDER / "ablations" / "pixel_shuffle_baseline.yaml")
    assert prospect.plans["factor=2"].total_parameters == 222_081_600


def test_freezing_trains_what_its_variants_are_called_after():
    ablation, prospect = planned(FOLDER / "ablations" / "freezing.yaml")
    trained = {variant.name: variant.experiment(0).training.trained_roles for variant in ablation.variants}
    assert trained == {
        "projector": ["projector"],
        "projector+decoder": ["projector", "language_decoder"],
        "projector+decoder_later": ["projector", "language_decoder"],
        "projector+encoder": ["projector", "vision_encoder"],
        "everything": ["projector", "vision_encoder", "language_decoder"],
    }
    later = ablation.variants[2].experiment(0).training
    assert later.frozen_until_step.language_decoder == later.steps / 2
    parameters = prospect.plans["everything"].parameters
    for name, plan in prospect.plans.items():
        assert plan.trained_parameters == sum(parameters[role] for role in trained[name])
