"""What the lab's intervals hold, over thousands of simulated ablations: the reason for the method in ``crossed.py``.

``pytest -m slow tests/lab/test_coverage.py -s`` prints the measured numbers.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from nanovlm.lab.crossed import Spread, t_point
from nanovlm.lab.statistics import accuracy_interval, gain, loss_difference, mcnemar, mean_loss, paired_difference

pytestmark = pytest.mark.slow

SIMULATIONS = 4000  # of each cell; a false alarm rate of 5 % is then known to 0.35 points
BLOCK = 250  # simulated at once
DEVIATIONS = (0.0, 0.01, 0.02, 0.03, 0.04)  # of a run's accuracy, by its seed
SEEDS = (3, 5)
ITEMS = (400, 600, 1500)
ACCURACIES = (0.3, 0.6, 0.9)
SHARES = (0.4, 0.2, 0.4)
"""Of a latent answer's variance: how hard an item is, how hard for one variant, and what is a run's own."""


@cache
def shift(accuracy, deviation):
    """The latent mean, and the deviation of the runs' latent shifts, that give the runs' accuracies theirs."""
    points, weights = hermegauss(80)
    weights = weights / weights.sum()

    def excess(latent):
        runs = ndtr(ndtri(accuracy) * np.hypot(1, latent) + latent * points)
        return np.sqrt(weights @ (runs - accuracy) ** 2) - deviation

    latent = brentq(excess, 0, 3) if deviation else 0.0
    return ndtri(accuracy) * np.hypot(1, latent), latent


def answers(random, accuracies, deviation, size, shares=SHARES):
    """0/1 answers (n, S, I) of one variant for each of the accuracies; no two variants share a seed's shift."""
    number, seeds, items = size

    def normal(share, *shape):
        return np.float32(np.sqrt(share)) * random.standard_normal(shape, dtype=np.float32)

    hard = normal(shares[0], number, 1, items)
    for accuracy in accuracies:
        mean, latent = shift(accuracy, deviation)
        hard_for_it = hard + normal(shares[1], number, 1, items)
        runs = np.float32(mean) + normal(latent**2, number, seeds, 1) + normal(shares[2], number, seeds, items)
        yield (hard_for_it + runs > 0).astype(np.float64)


def blocks(accuracies, deviation, seeds, items, simulations=SIMULATIONS, shares=SHARES):
    random = np.random.default_rng([int(1000 * number) for number in (*accuracies, deviation, seeds, items)])
    for _ in range(simulations // BLOCK):
        yield tuple(answers(random, accuracies, deviation, (BLOCK, seeds, items), shares))


@cache
def measured(accuracy, deviation, seeds, items, shares=SHARES):
    """How often an accuracy's interval holds it, how often a null difference is called one, and how wide the latter's
    interval is, against one that knows the variance."""
    held, margins, centres = [], [], []
    for variant, baseline in blocks((accuracy, accuracy), deviation, seeds, items, shares=shares):
        _, low, high = accuracy_interval(baseline)
        held.extend((low <= accuracy) & (accuracy <= high))
        centre, spread = gain(variant - baseline)
        centres.extend(centre)
        margins.extend(spread.margin())
    return np.mean(held), np.mean(np.abs(centres) > margins), np.mean(margins) / (1.96 * np.std(centres))


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_an_accuracy_is_held_and_a_null_difference_is_not_called_one(deviation, seeds):
    cells = [measured(accuracy, deviation, seeds, items) for accuracy, items in product(ACCURACIES, ITEMS)]
    held, alarms, width = np.array(cells).T
    print(
        f"\nseed deviation {100 * deviation:.0f} points, {seeds} seeds: accuracies held {held.mean():.1%}, at worst "
        f"{held.min():.1%}; false alarms {alarms.mean():.1%}, at worst {alarms.max():.1%}; width {width.mean():.2f}"
    )
    assert held.min() >= 0.92
    assert alarms.max() <= 0.06
    assert 1 < width.min() <= width.max() < {3: 2.0, 5: 1.4}[seeds]


@pytest.mark.parametrize("shares", [(0.79, 0.01, 0.2), (0.1, 0.1, 0.8), (0.2, 0.6, 0.2)])
@pytest.mark.parametrize("deviation", [0.0, 0.02, 0.04])
def test_so_it_is_whatever_the_answers_owe_to_items_variants_and_runs(deviation, shares):
    held, alarms, _ = np.transpose([measured(0.6, deviation, seeds, 600, shares) for seeds in SEEDS])
    assert held.min() >= 0.92
    assert alarms.max() <= 0.06


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_a_true_difference_is_held(deviation, seeds):
    held = []
    for variant, baseline in blocks((0.65, 0.6), deviation, seeds, 600, 1000):
        centre, spread = gain(variant - baseline)
        held.extend(np.abs(centre - 0.05) <= spread.margin())
    assert np.mean(held) >= 0.92


def losses(random, seeds, deviation):
    """Sums (S, I) of two variants, targets (I,), and the true loss a target of both; longer samples are easier."""
    shape = (seeds, 300)
    hard, length = random.standard_normal((2, shape[1]))
    targets = np.exp(3 + 0.5 * (length - hard) / np.sqrt(2))
    runs = deviation * random.standard_normal((2, seeds, 1)) + 0.2 * random.standard_normal((2, *shape))
    means = 2 + 0.5 * hard + 0.1 * random.standard_normal((2, 1, shape[1])) + runs
    return means * targets, targets, 2 - 0.5 * 0.5 / np.sqrt(2)


@pytest.mark.parametrize(("seeds", "deviation"), [(1, 0.0), (3, 0.0), (3, 0.02), (5, 0.0), (5, 0.02)])
def test_a_loss_is_held_and_a_null_difference_of_losses_is_not_called_one(seeds, deviation):
    random, held, alarms = np.random.default_rng(seeds), [], []
    for _ in range(1000):
        (variant, baseline), targets, true = losses(random, seeds, deviation)
        loss = mean_loss(baseline, targets)
        held.append(loss.low <= true <= loss.high)
        alarms.append(loss_difference(variant, baseline, targets).p < 0.05)
    assert np.mean(held) >= 0.92
    assert np.mean(alarms) <= 0.06


@pytest.mark.parametrize(("seeds", "deviation"), [(1, 0.0), (3, 0.01), (3, 0.03), (5, 0.01), (5, 0.03)])
def test_a_detectable_difference_is_seen_four_times_in_five(seeds, deviation):
    ((variants, baselines),) = blocks((0.5, 0.5), deviation, seeds, 600, BLOCK)
    detectable = np.mean([paired_difference(*pair).detectable for pair in zip(variants, baselines, strict=True)])
    seen = []
    for variants, baselines in blocks((0.5 + detectable, 0.5), deviation, seeds, 600, 1000):
        centre, spread = gain(variants - baselines)
        seen.extend(np.abs(centre) > spread.margin())
    assert np.mean(seen) == pytest.approx(0.8, abs=0.1)


# What was rejected, and why.


def test_a_t_interval_over_the_seeds_forgets_that_they_share_the_items():
    held = []
    for (scores,) in blocks((0.6,), 0.0, 5, 600, 1000):
        margin = t_point(0.05, 4) * np.sqrt(Spread.of(scores).seeds)
        held.extend(np.abs(scores.mean((1, 2)) - 0.6) <= margin)
    assert np.mean(held) < 0.8


@pytest.mark.parametrize(("items", "alarms"), [(600, 0.12), (1500, 0.25)])
def test_mcnemar_takes_the_noise_of_one_run_for_a_difference(items, alarms):
    p_values = []
    for variants, baselines in blocks((0.6, 0.6), 0.02, 1, items, 1000):
        p_values.extend(mcnemar(one[0], other[0]) for one, other in zip(variants, baselines, strict=True))
    assert np.mean(np.array(p_values) < 0.05) > alarms


def nested_bootstrap(random, gained, draws=400):
    """The ends (2, n) of the intervals of differences (n, S, I) in -1, 0, 1: draws seeds, then items within each."""
    number, seeds, items = gained.shape
    shares = np.stack([(gained == value).mean(-1) for value in (-1, 0, 1)], axis=-1)  # (n, S, 3)
    chosen = random.integers(seeds, size=(draws, number, seeds))
    counts = random.multinomial(items, shares[np.arange(number)[:, None], chosen])  # (draws, n, S, 3)
    means = (counts[..., 2] - counts[..., 0]).mean(-1) / items
    return np.quantile(means, (0.025, 0.975), axis=0)


@pytest.mark.parametrize(("deviation", "shares", "held"), [(0.0, (0.1, 0.1, 0.8), (0.97, 1)), (0.04, SHARES, (0, 0.9))])
def test_a_nested_bootstrap_counts_noise_twice_and_the_spread_of_few_seeds_too_low(deviation, shares, held):
    random, holds = np.random.default_rng(0), []
    for variants, baselines in blocks((0.6, 0.6), deviation, 5, 600, 1000, shares):
        low, high = nested_bootstrap(random, variants - baselines)
        holds.extend((low <= 0) & (high >= 0))
    assert held[0] <= np.mean(holds) <= held[1]
