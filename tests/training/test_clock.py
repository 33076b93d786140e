import pytest

from nanovlm.flops import Work
from nanovlm.training import clock as module
from nanovlm.training.clock import WINDOW, Clock


@pytest.fixture
def clock(monkeypatch):
    """A clock whose time is set by hand: ``clock.now``."""
    time = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: time[0])
    clock = Clock(peak=1000.0)
    clock.pass_time = lambda seconds: time.__setitem__(0, time[0] + seconds)
    return clock


def step(clock, seconds: float, waiting: float = 0.0) -> dict[str, float]:
    with clock.waiting():
        clock.pass_time(waiting)
    clock.pass_time(seconds - waiting)
    clock.samples += 4
    clock.work = Work.together((clock.work, Work(tokens=100)))
    clock.flops += 500.0
    return clock.step_finished()


def test_rates_are_what_was_done_in_the_time(clock):
    rates = step(clock, seconds=2.0, waiting=0.5)
    expected = {
        "seconds": 2.0,
        "samples": 4,
        "samples_per_second": 2.0,
        "tokens_per_second": 50.0,
        "data_wait": 0.25,
        "mfu": 0.25,
    }
    assert rates == pytest.approx(expected)


def test_live_rates_forget_the_first_steps_and_the_summarys_do_not(clock):
    step(clock, seconds=81.0)  # compiles
    for _ in range(WINDOW):
        rates = step(clock, seconds=1.0)
    assert rates["samples_per_second"] == pytest.approx(4.0)
    assert clock.rates()["samples_per_second"] == pytest.approx(4 * (WINDOW + 1) / (81 + WINDOW))


def test_evaluations_do_not_count(clock):
    with clock.stopped():
        clock.pass_time(1000)
    assert step(clock, seconds=2.0)["samples_per_second"] == pytest.approx(2.0)
    assert clock.wall_seconds == 1002


@pytest.mark.parametrize(("peak", "flops"), [(None, 500.0), (1000.0, 0.0)])
def test_utilisation_is_told_only_where_it_is_known(clock, peak, flops):
    clock.peak, clock.flops = peak, flops
    clock.pass_time(1.0)
    assert "mfu" not in clock.rates()
