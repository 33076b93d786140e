import json

import pytest
import torch
from finished import Finished, same
from tiny import tiny_experiment

from nanovlm import load_experiment, train

SHARE = "data.validation.share=0.2"


def assert_same_run(first: Finished, second: Finished) -> None:
    assert first.metric("loss") == second.metric("loss")
    assert first.metric("grad_norm") == second.metric("grad_norm")
    assert same(first.tensors(), second.tensors())
    assert first.provenance()["initial_weights"] == second.provenance()["initial_weights"]
    assert first.provenance()["data_order"] == second.provenance()["data_order"]
    for key in ("benchmarks", "validation_loss", "samples", "tokens", "skipped"):
        assert first.summary.get(key) == second.summary.get(key)


def asked(finished: Finished) -> list[tuple[str, str, str]]:
    lines = (finished.folder / "evaluation" / "shapes" / "3.jsonl").read_text().splitlines()
    return [(item["id"], item["question"], item["answer"]) for item in map(json.loads, lines)]


def test_the_same_seed_gives_the_same_run_bit_for_bit(run):
    first = run(SHARE)
    torch.manual_seed(99)  # what the caller does with the global generator does not matter
    assert_same_run(first, run(SHARE))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(run, workers):
    assert_same_run(run(SHARE), run(SHARE, f"data.workers={workers}"))


def test_another_seed_gives_another_run_on_the_same_split(run):
    first, second = run(SHARE), run(SHARE, "seed=1")
    assert first.metric("loss") != second.metric("loss")
    assert first.provenance()["data_order"] != second.provenance()["data_order"]
    initial = [finished.provenance()["initial_weights"] for finished in (first, second)]
    assert all(initial[0][role] != initial[1][role] for role in initial[0])
    assert asked(first) == asked(second)


def test_the_resolved_experiment_gives_the_same_run(run, tmp_path):
    first = run(SHARE, "data.train.0.weight=0.5", "training.betas=[0.8, 0.99]")
    again = load_experiment(first.folder / "experiment.yaml")
    second = Finished(tmp_path / "again", train(again, tmp_path / "again"))
    assert_same_run(first, second)
    texts = [(finished.folder / "experiment.yaml").read_text() for finished in (first, second)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("override", ["projector.factor=1", "projector.factor=4"])
def test_variants_share_their_data_and_their_other_initial_weights(run, override):
    first, second = run().provenance(), run(override).provenance()
    assert first["data_order"] == second["data_order"]
    same_weights = {
        role for role, weights in first["initial_weights"].items() if second["initial_weights"][role] == weights
    }
    assert same_weights == {"vision_encoder", "language_decoder"}


@pytest.mark.parametrize("override", ["projector.factor=1", "training.tokens_per_row=84", "data.workers=1"])
def test_what_is_trained_on_does_not_depend_on(run, override):
    first, second = run(SHARE), run(SHARE, override)
    assert first.metric("samples") == second.metric("samples")
    assert first.provenance()["data_order"] == second.provenance()["data_order"]


def test_another_data_seed_is_another_split(run):
    orders = [run(SHARE, f"data.seed={seed}").provenance()["data_order"] for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_training_leaves_the_callers_randomness_alone(tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    train(tiny_experiment("training.steps=1"), tmp_path / "run")
    assert torch.get_rng_state().equal(before)
