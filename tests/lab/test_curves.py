"""Loss curves against plain loops."""

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from compared import comparison, curve, result

from nanovlm.lab.report.curves import loss_curve, smoothed


def test_smoothing_is_the_mean_of_the_neighbours_in_a_window():
    generator = random.Random(0)
    for count, share in ((1, 0.5), (7, 0.3), (40, 0.05), (101, 0.1)):
        values = [generator.random() for _ in range(count)]
        half = int(share * count / 2)
        windows = [values[max(0, i - half) : i + half + 1] for i in range(count)]
        assert smoothed(values, share).tolist() == pytest.approx([sum(w) / len(w) for w in windows])


def variant_of(*curves):
    runs = tuple(replace(result(Path("run"), seed, 0.2), curve=found) for seed, found in enumerate(curves))
    return replace(comparison().variants[0], runs=runs)


def test_a_curve_is_the_mean_over_the_runs_with_their_range():
    curves = [curve(0.2, seed, speed=1 + seed, steps=10) for seed in range(3)]  # too short to be smoothed
    found = loss_curve(variant_of(*curves))
    for i in range(10):
        losses = [events[i]["loss"] for events in curves]
        assert found.loss[i] == pytest.approx(sum(losses) / 3)
        assert (found.lowest[i], found.highest[i]) == pytest.approx((min(losses), max(losses)))
        assert found.seconds[i] == pytest.approx(sum(events[i]["seconds"] for events in curves) / 3)
    assert found.samples.tolist() == [32 * step for step in range(1, 11)] and found.runs == 3


@pytest.mark.parametrize("lost", [None, math.nan, math.inf])
def test_steps_without_a_finite_loss_are_left_out_and_counted(lost):
    events = curve(0.2, 0, steps=10)
    broken = [event | {"loss": lost} if event["step"] in (3, 4) else event for event in events]
    skipped = [{key: value for key, value in event.items() if key != "loss"} for event in events[:1]]  # all skipped
    found = loss_curve(variant_of(events, [*skipped, *broken[1:]]))
    assert found.samples.tolist() == [32 * step for step in (2, *range(5, 11))]
    assert found.lost == 2


def test_runs_that_logged_different_steps_meet_at_those_of_all():
    every, some = curve(0.2, 0, steps=12), curve(0.2, 1, steps=12)[3::4]
    assert loss_curve(variant_of(every, some)).samples.tolist() == [32 * step for step in (4, 8, 12)]


def test_without_a_common_step_there_is_no_curve():
    assert loss_curve(variant_of(curve(0.2, 0, steps=1), [])) is None
    assert loss_curve(variant_of()) is None
