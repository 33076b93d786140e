import pytest

from nanovlm.evaluation.metrics import accuracy, wilson_interval

COUNTS = [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (530, 1500)]


@pytest.mark.parametrize(("right", "asked"), COUNTS)
def test_the_bounds_are_where_the_score_test_rejects(right, asked):
    share = right / asked
    for bound in wilson_interval([1.0] * right + [0.0] * (asked - right)):
        if 1e-9 < bound < 1 - 1e-9:
            assert (share - bound) ** 2 * asked == pytest.approx(1.96**2 * bound * (1 - bound), rel=1e-3)
        else:
            assert share == pytest.approx(bound)


@pytest.mark.parametrize(("right", "asked"), COUNTS)
def test_the_interval_holds_the_accuracy(right, asked):
    scores = [1.0] * right + [0.0] * (asked - right)
    low, high = wilson_interval(scores)
    assert 0 <= low <= accuracy(scores) == right / asked <= high <= 1
    assert high - low > 0.04


def test_graded_scores_are_averaged():
    assert accuracy([0.0, 0.5, 1.0, 1.0]) == 0.625
