from math import comb

import numpy as np
import pytest

from nanovlm.lab.statistics import holm, mcnemar


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([], []),
        ([0.02], [0.02]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.6, 0.001], [1.0, 1.0, 0.003]),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holms_correction_is_as_worked_by_hand(p_values, corrected):
    assert holm(p_values) == pytest.approx(corrected)


def test_holm_keeps_the_order_and_lies_between_no_correction_and_bonferronis():
    p_values = np.random.default_rng(0).random(30) ** 3
    corrected = np.array(holm(p_values.tolist()))
    assert (np.diff(corrected[np.argsort(p_values)]) >= 0).all()
    assert (corrected >= p_values).all() and (corrected <= np.minimum(1, 30 * p_values) + 1e-12).all()


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (0, 6), (5, 5), (12, 3), (30, 51)])
def test_mcnemars_p_is_the_chance_of_so_uneven_a_split_under_a_fair_coin(won, lost):
    variant, baseline = [1] * won + [0] * lost + [1, 0], [0] * won + [1] * lost + [1, 0]
    tail = sum(comb(won + lost, k) for k in range(min(won, lost) + 1)) / 2 ** (won + lost)
    assert mcnemar(variant, baseline) == pytest.approx(min(1, 2 * tail))
    assert mcnemar(baseline, variant) == pytest.approx(min(1, 2 * tail))


def test_mcnemar_has_nothing_to_say_of_graded_scores():
    assert mcnemar([1, 0.5, 0], [1, 0, 0]) is None
    assert mcnemar([1, 0, 0], [1, 0, 0.5]) is None
