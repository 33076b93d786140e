import time

import pytest
import torch
from nanovlm_plugins.shapes import Shapes
from tiny import tiny_model, tiny_recipe

from nanovlm import VisionLanguageModel
from nanovlm.bench import step
from nanovlm.bench.setup import synthetic_steps, with_steps
from nanovlm.bench.split import PIECES
from nanovlm.flops import count_flops


@pytest.fixture(scope="module")
def figures():
    return step.measure_step(tiny_recipe(), 3, synthetic=True)


def test_what_was_done_is_counted_without_the_warm_up(figures):
    recipe = with_steps(tiny_recipe(), step.WARM_UP + 3)
    steps = synthetic_steps(recipe, tiny_model())
    counted = [steps[n] for n in range(step.WARM_UP, step.WARM_UP + 3)]
    assert figures["samples"] == 3 * 8
    assert figures["tokens"] == sum(row.num_tokens for each in counted for row in each.rows)
    assert figures["samples_per_second"] == pytest.approx(24 / figures["seconds"])
    assert figures["tokens_per_second"] == pytest.approx(figures["tokens"] / figures["seconds"])


def test_flops_are_those_of_the_steps(figures):
    """Compared with torch's own counter on the very rows."""
    recipe = with_steps(tiny_recipe(), step.WARM_UP + 3)
    steps = synthetic_steps(recipe, tiny_model())
    with torch.device("meta"):
        model = VisionLanguageModel(recipe.blueprint)
    rows = [row for n in range(step.WARM_UP, step.WARM_UP + 3) for row in steps[n].rows]
    counted = sum(count_flops(model, row) for row in rows)
    done = figures["flops_per_second"] * figures["seconds"]
    assert done == pytest.approx(counted, rel=0.15)  # groups are padded, which no model FLOPs are
    assert figures["mfu"] == pytest.approx(figures["flops_per_second"] / figures["peak_flops_per_second"])
    assert figures["peak_origin"] == "a large fp32 matrix multiplication, measured"


def test_the_split_names_every_piece_and_shares_add_up(figures):
    assert tuple(figures["split"]) == PIECES
    assert sum(piece["share"] for piece in figures["split"].values()) == pytest.approx(1)
    assert all(figures["split"][piece]["ms"] > 0 for piece in PIECES)


def test_the_warm_up_takes_no_time_off_the_steps(monkeypatch):
    calls, original = [], step.DividedTrainer.train_step

    def slow_at_first(self):
        calls.append(self.step)
        time.sleep(0.2 if len(calls) <= step.WARM_UP else 0)
        return original(self)

    monkeypatch.setattr(step.DividedTrainer, "train_step", slow_at_first)
    figures = step.measure_step(tiny_recipe(), 2, synthetic=True)
    assert len(calls) == step.WARM_UP + 2 + 2  # and two piece by piece
    assert figures["seconds"] < 0.2 * step.WARM_UP


def test_waiting_for_data_counts(monkeypatch):
    original = Shapes.__getitem__

    def slow(self, index):
        time.sleep(0.02)
        return original(self, index)

    monkeypatch.setattr(Shapes, "__getitem__", slow)
    figures = step.measure_step(tiny_recipe(), 2, synthetic=False)
    assert figures["samples_per_second"] < 1 / 0.02
    assert figures["data_wait"] * figures["seconds"] > 0.9 * 16 * 0.02
    assert figures["split"]["data_wait"]["ms"] > 0.9 * 8 * 20


def test_what_thaws_later_is_measured_as_trained():
    """Otherwise ten steps would be too few for it, and say nothing of the run."""
    figures = step.measure_step(tiny_recipe("training.frozen_until_step.vision_encoder=2"), 1, synthetic=True)
    assert figures["steps"] == 1


def test_an_experiment_by_epochs_is_measured_too():
    assert step.measure_step(tiny_recipe("training.epochs=2"), 1, synthetic=False)["samples"] == 8
