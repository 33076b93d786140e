from __future__ import annotations

from dataclasses import astuple
from itertools import product
from math import inf, nan, sqrt

import numpy as np
import pytest
from scipy import stats

from nanovlm.evaluation.metrics import wilson_interval
from nanovlm.lab.crossed import Spread
from nanovlm.lab.statistics import (
    accuracy_interval,
    gain,
    loss_difference,
    mcnemar,
    mean_loss,
    mean_over_seeds_and_items,
    paired_difference,
)

SIZES = [(1, 40), (2, 40), (3, 25), (5, 120)]
GRIDS = [(size, graded) for size in SIZES for graded in (False, True)]


def scores(size, graded=False, seed=0, accuracy=0.6):
    """Scores (S, I) of items that differ in how hard they are."""
    random = np.random.default_rng([seed, *size])
    chances = np.clip(accuracy + 0.3 * random.standard_normal(size[1]), 0, 1)
    drawn = random.random(size)
    return np.round(np.abs(chances - drawn), 1) if graded else (drawn < chances).astype(float)


def sums(size, seed=0):
    """Losses (S, I) and targets (I,): samples differ in length and in loss, runs in loss."""
    random = np.random.default_rng([seed, *size])
    targets = random.integers(1, 40, size[1])
    return targets * random.gamma(4, 0.5, size[1]) * random.uniform(0.9, 1.1, size), targets


def variance_by_hand(grid):
    """The two-way analysis of variance, cell by cell: mean squares of seeds, items and the rest."""
    seeds, items = len(grid), len(grid[0])
    mean = sum(map(sum, grid)) / (seeds * items)
    by_seed = [sum(row) / items for row in grid]
    by_item = [sum(row[i] for row in grid) / seeds for i in range(items)]
    of_seeds = items * sum((one - mean) ** 2 for one in by_seed) / (seeds - 1)
    of_items = seeds * sum((one - mean) ** 2 for one in by_item) / (items - 1)
    rest = sum((grid[s][i] - by_seed[s] - by_item[i] + mean) ** 2 for s in range(seeds) for i in range(items))
    return of_seeds, of_items, rest / ((seeds - 1) * (items - 1))


def margin_by_hand(grid):
    seeds, items = len(grid), len(grid[0])
    of_seeds, of_items, rest = variance_by_hand(grid)
    t_seeds, t_items = stats.t.ppf(0.975, seeds - 1), stats.t.ppf(0.975, items - 1)
    both = t_seeds**2 * of_seeds + t_items**2 * max(0, of_items - rest)
    return sqrt(max(t_items**2 * of_items, both) / (seeds * items))


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("seed", range(3))
def test_the_parts_of_the_variance_are_those_of_the_analysis_of_variance(size, seed):
    grid = scores(size, seed=seed) - scores(size, seed=seed + 10)
    spread = Spread.of(grid)
    parts = np.array([spread.seeds, spread.items, spread.noise]) * grid.size
    assert parts == pytest.approx(variance_by_hand(grid.tolist()))
    assert spread.margin() == pytest.approx(margin_by_hand(grid.tolist()))


def test_many_grids_at_once_give_what_each_gives_alone():
    variants, baselines = (np.stack([scores((3, 25), seed=seed + k) for seed in range(6)]) for k in (0, 10))
    centres, spreads = gain(variants - baselines)
    values, lows, highs = accuracy_interval(variants)
    for n, (variant, baseline) in enumerate(zip(variants, baselines, strict=True)):
        difference, accuracy = paired_difference(variant, baseline), mean_over_seeds_and_items(variant)
        assert difference.low == pytest.approx(centres[n] - spreads.margin()[n])
        assert (accuracy.value, accuracy.low, accuracy.high) == pytest.approx((values[n], lows[n], highs[n]))


# Accuracies


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("items", [1, 5, 60])
def test_the_interval_of_a_single_seed_is_wilsons(items, graded):
    grid = scores((1, items), graded)
    estimate = mean_over_seeds_and_items(grid)
    assert (estimate.low, estimate.high) == pytest.approx(wilson_interval(grid[0].tolist()))


@pytest.mark.parametrize("all_scores", [0.0, 1.0])
@pytest.mark.parametrize("seeds", [1, 3])
def test_answers_that_are_all_right_or_all_wrong_are_as_sure_as_their_number_of_items(all_scores, seeds):
    estimate = mean_over_seeds_and_items(np.full((seeds, 50), all_scores))
    assert estimate.value == all_scores
    assert (estimate.low, estimate.high) == pytest.approx(wilson_interval([all_scores] * 50))
    assert estimate.high - estimate.low > 0.05


def test_seeds_that_all_answer_alike_say_no_more_than_one():
    one, other = scores((1, 60)), scores((1, 60), seed=1)
    alike, like_it = one.repeat(4, axis=0), other.repeat(4, axis=0)
    assert astuple(mean_over_seeds_and_items(alike)) == pytest.approx(astuple(mean_over_seeds_and_items(one)))
    assert astuple(paired_difference(alike, like_it)) == pytest.approx(astuple(paired_difference(one, other)))


@pytest.mark.parametrize("grid", [[[1, 0], [0, 1]], [[0.5] * 30] * 3, [[1], [0], [1]], [[1, 1, 1], [0, 0, 0]]])
def test_items_whose_means_are_equal_have_an_interval_with_a_width(grid):
    estimate = mean_over_seeds_and_items(grid)
    assert 0 <= estimate.low < estimate.value < estimate.high <= 1


@pytest.mark.parametrize(("size", "graded"), GRIDS)
@pytest.mark.parametrize("accuracy", [0.05, 0.6, 0.97])
def test_the_interval_holds_the_accuracy_and_stays_in_range(size, graded, accuracy):
    grid = scores(size, graded, accuracy=accuracy)
    estimate = mean_over_seeds_and_items(grid)
    assert estimate.value == pytest.approx(grid.mean())
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low < estimate.high


# Paired differences


@pytest.mark.parametrize("items", [5, 40, 400])
def test_the_difference_of_a_single_seed_has_the_interval_of_half_a_pair_more_in_each_cell(items):
    variant, baseline = scores((1, items)), scores((1, items), seed=1)
    won, lost = ((variant > baseline).sum() + 0.5), ((variant < baseline).sum() + 0.5)
    count = items + 2
    centre, error = (won - lost) / count, sqrt(won + lost - (won - lost) ** 2 / count) / count
    difference = paired_difference(variant, baseline)
    assert difference.value == pytest.approx((variant - baseline).mean())
    assert difference.low == pytest.approx(centre - stats.t.ppf(0.975, count - 1) * error)
    assert difference.high == pytest.approx(centre + stats.t.ppf(0.975, count - 1) * error)
    assert difference.p == pytest.approx(2 * stats.t.sf(abs(centre) / error, count - 1))
    assert difference.detectable == pytest.approx((stats.t.ppf(0.975, count - 1) + stats.norm.ppf(0.8)) * error)


def test_with_several_seeds_the_two_items_more_matter_little():
    variant, baseline = scores((5, 2000)), scores((5, 2000), seed=1)
    difference, margin = paired_difference(variant, baseline), margin_by_hand((variant - baseline).tolist())
    assert difference.low == pytest.approx(difference.value - margin, abs=0.01 * margin)
    assert difference.high == pytest.approx(difference.value + margin, abs=0.01 * margin)


@pytest.mark.parametrize(("size", "graded"), GRIDS)
def test_swapping_the_variants_turns_the_sign_and_nothing_else(size, graded):
    variant, baseline = scores(size, graded), scores(size, graded, seed=1)
    one, other = paired_difference(variant, baseline), paired_difference(baseline, variant)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
    assert (one.p, one.detectable) == pytest.approx((other.p, other.detectable))


@pytest.mark.parametrize("size", SIZES)
def test_the_order_of_seeds_and_of_items_does_not_matter(size):
    random = np.random.default_rng(0)
    seeds, items = random.permutation(size[0]), random.permutation(size[1])
    variant, baseline = scores(size), scores(size, seed=1)
    losses, targets = sums(size)

    def mixed(grid):
        return grid[seeds][:, items]

    before, after = paired_difference(variant, baseline), paired_difference(mixed(variant), mixed(baseline))
    assert astuple(after) == pytest.approx(astuple(before))
    assert astuple(mean_loss(mixed(losses), targets[items])) == pytest.approx(astuple(mean_loss(losses, targets)))


@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_answers_are_no_proof_of_equal_variants(seeds):
    grid = scores((seeds, 50))
    difference = paired_difference(grid, grid)
    assert (difference.value, difference.p) == (0, 1)
    assert -0.1 < difference.low == -difference.high < -0.01
    assert 0.01 < difference.detectable < 0.2


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 1), (2, 2), (3, 50)])
def test_all_gained_is_a_difference_with_an_interval(size):
    difference = paired_difference(np.ones(size), np.zeros(size))
    assert -1 <= difference.low < difference.value == difference.high == 1
    assert 0 < difference.p < 1
    assert 0 < difference.detectable <= 1


def test_p_is_below_five_percent_exactly_where_the_interval_leaves_0_out():
    seen = set()
    for seed in range(40):
        for size, accuracy in product(SIZES, (0.3, 0.45, 0.6)):
            difference = paired_difference(scores(size, seed=seed, accuracy=accuracy), scores(size, seed=seed + 100))
            assert (difference.p < 0.05) == (not difference.low <= 0 <= difference.high)
            assert difference.low <= difference.value <= difference.high
            seen.add(difference.p < 0.05)
    assert seen == {True, False}


def test_seeds_that_disagree_widen_the_interval_and_the_difference_that_would_be_seen():
    variant, baseline = scores((3, 400)), scores((3, 400), seed=1)
    apart = variant.copy()
    apart[0, :60], apart[1, :60] = 1, 0
    before, after = paired_difference(variant, baseline), paired_difference(apart, baseline)
    assert after.high - after.low > 1.5 * (before.high - before.low)
    assert after.detectable > 1.5 * before.detectable
    accuracy, spread = mean_over_seeds_and_items(variant), mean_over_seeds_and_items(apart)
    assert spread.high - spread.low > 1.5 * (accuracy.high - accuracy.low)


@pytest.mark.parametrize("size", SIZES)
def test_a_difference_must_be_larger_than_the_margin_to_be_seen_four_times_in_five(size):
    difference = paired_difference(scores(size), scores(size, seed=1))
    margin = (difference.high - difference.low) / 2
    assert margin < difference.detectable <= 1


# Losses


def test_a_loss_is_the_sum_over_all_targets_by_their_number():
    losses, targets = sums((3, 50))
    assert mean_loss(losses, targets).value == pytest.approx(losses.sum() / (3 * targets.sum()))


def test_the_interval_of_a_loss_is_that_of_leaving_out_one_sample_after_the_other():
    losses, targets = sums((1, 400))
    without = [(losses.sum() - losses[0, i]) / (targets.sum() - targets[i]) for i in range(400)]
    jackknife = sqrt(399 / 400 * sum((one - np.mean(without)) ** 2 for one in without))
    loss = mean_loss(losses, targets)
    assert (loss.high - loss.low) / 2 == pytest.approx(stats.t.ppf(0.975, 399) * jackknife, rel=0.02)


@pytest.mark.parametrize("size", [(1, 30), (3, 30)])
def test_of_samples_of_equal_length_a_loss_is_a_plain_mean(size):
    losses, _ = sums(size)
    loss = mean_loss(losses, np.full(30, 7))
    margin = margin_by_hand((losses / 7).tolist()) if size[0] > 1 else stats.t.ppf(0.975, 29) * stats.sem(losses[0] / 7)
    assert astuple(loss) == pytest.approx((losses.mean() / 7, losses.mean() / 7 - margin, losses.mean() / 7 + margin))


@pytest.mark.parametrize("size", SIZES)
def test_the_difference_of_losses_is_paired_and_has_the_sign_of_the_variant(size):
    baseline, targets = sums(size)
    random = np.random.default_rng(0)
    variant = baseline + targets * (0.1 + random.normal(0, 0.02, (size[0], 1)) + random.normal(0, 0.1, size))
    difference = loss_difference(variant, baseline, targets)
    assert difference.value == pytest.approx(mean_loss(variant, targets).value - mean_loss(baseline, targets).value)
    assert difference.low < difference.value < difference.high < difference.low + 1
    assert (difference.p < 0.05) == (difference.low > 0)
    back = loss_difference(baseline, variant, targets)
    assert (back.value, back.low, back.high) == pytest.approx((-difference.value, -difference.high, -difference.low))
    assert (back.p, back.detectable) == pytest.approx((difference.p, difference.detectable))


def test_a_loss_is_not_kept_under_1_and_has_the_unit_of_its_sums():
    losses, targets = sums((3, 50))
    assert astuple(mean_loss(10 * losses, targets)) == pytest.approx(10 * np.array(astuple(mean_loss(losses, targets))))
    assert mean_loss(10 * losses, targets).low > 1


@pytest.mark.parametrize("losses", [[[3.0], [4.0]], [[3.0, nan]], [[3.0, inf], [3.0, 4.0]], [[2.0, 2.0], [2.0, 2.0]]])
def test_a_loss_with_nothing_to_judge_it_by_has_no_interval(losses):
    targets = [2] * len(losses[0])
    loss, difference = mean_loss(losses, targets), loss_difference(losses, np.ones_like(losses), targets)
    assert (loss.low, loss.high) == (None, None)
    assert (difference.low, difference.high, difference.p, difference.detectable) == (None, None, None, None)


def test_equal_losses_differ_by_0_and_say_no_more():
    losses, targets = sums((3, 50))
    assert astuple(loss_difference(losses, losses, targets)) == (0, None, None, None, None)


# Bad input


@pytest.mark.parametrize("grid", [[1, 0, 1], [[]], [], [[[1]]], 1.0])
def test_scores_of_another_shape_are_refused(grid):
    for call in (mean_over_seeds_and_items, lambda one: paired_difference(one, one), lambda one: mean_loss(one, [1])):
        with pytest.raises(ValueError, match=r"expected values of shape \(seeds, items\), not \("):
            call(grid)


@pytest.mark.parametrize("score", [1.5, -0.1, nan])
def test_scores_outside_0_to_1_are_refused(score):
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\]"):
        mean_over_seeds_and_items([[1, score]])


def test_differences_of_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match=r"needs equal shapes, not \(1, 3\) and \(1, 2\)"):
        paired_difference([[1, 0, 1]], [[1, 0]])
    with pytest.raises(ValueError, match=r"needs equal shapes, not \(3,\) and \(2,\)"):
        mcnemar([1, 0, 1], [1, 0])


@pytest.mark.parametrize("targets", [[1, 2], [0, 0, 0], 3])
def test_losses_need_the_targets_of_each_sample(targets):
    with pytest.raises(ValueError, match="losses of 3 samples need their numbers of targets"):
        mean_loss([[1, 2, 3]], targets)
