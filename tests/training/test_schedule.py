from itertools import pairwise

import pytest

from nanovlm.experiment import Training
from nanovlm.training.schedule import schedule


def share_of(step: int, steps: int, **options) -> float:
    return schedule(step, steps, Training(steps=steps, **options))


@pytest.mark.parametrize(
    ("step", "share"), [(0, 0.1), (1, 0.2), (9, 1.0), (10, 1.0), (54, 0.60706), (55, 0.59294), (98, 0.20025), (99, 0.2)]
)
def test_the_learning_rate_rises_on_a_line_and_falls_on_a_cosine(step, share):
    assert share_of(step, 100, warmup=0.1, final_learning_rate=0.2) == pytest.approx(share, abs=1e-5)


def test_the_schedule_goes_up_then_down():
    shares = [share_of(step, 50, warmup=0.2, final_learning_rate=0.0) for step in range(50)]
    assert shares[:10] == sorted(shares[:10])
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[-1] == pytest.approx(0)
    assert max(shares) == 1
    assert min(shares[:-1]) > 0


def test_a_stable_learning_rate_falls_on_a_line_in_the_end():
    options = {"schedule": "warmup_stable_decay", "warmup": 0.1, "decay": 0.2, "final_learning_rate": 0.5}
    shares = [share_of(step, 100, **options) for step in range(100)]
    assert shares[9:81] == [1.0] * 72
    falls = [before - after for before, after in pairwise(shares[80:])]
    assert falls == [pytest.approx(0.5 / 19)] * 19
    assert shares[-1] == pytest.approx(0.5)


def test_a_constant_learning_rate_is_constant_after_its_warm_up():
    assert [share_of(step, 5, schedule="constant", warmup=0.4) for step in range(5)] == [0.5, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("schedule", ["cosine", "warmup_stable_decay", "constant"])
@pytest.mark.parametrize(("steps", "warmup", "decay"), [(1, 0.0, 0.0), (1, 1.0, 1.0), (7, 0.5, 0.9), (10, 0.0, 1.0)])
def test_no_schedule_leaves_its_range(schedule, steps, warmup, decay):
    options = {"schedule": schedule, "warmup": warmup, "decay": decay, "final_learning_rate": 0.0}
    shares = [share_of(step, steps, **options) for step in range(steps)]
    assert min(shares) >= 0
    assert max(shares) == 1


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 1.0), (2, 0.5), (10, 1.0)])
def test_the_peak_is_reached_in_the_shortest_of_runs(steps, warmup):
    assert max(share_of(step, steps, warmup=warmup, final_learning_rate=0.1) for step in range(steps)) == 1
