import io

import pytest
from nanovlm_plugins import console
from rich.console import Console as Terminal

from nanovlm.training.run import Run

FACTS = {
    "run": "runs/tiny/now",
    "total_steps": 100,
    "parameters": 1234,
    "vision_encoder": "siglip",
    "projector": "pixel_shuffle",
    "language_decoder": "smollm2",
    "device": "cpu",
    "precision": "fp32",
}
METRICS = {"loss": 1.25, "samples_per_second": 10.4, "tokens_per_second": 2000.0}


@pytest.fixture(params=[False, True], ids=["log file", "terminal"])
def watched(request, registries, tmp_path, monkeypatch):
    """A console tracker, and what it has printed so far."""
    screen = io.StringIO()
    terminal = Terminal(file=screen, force_terminal=request.param, width=100, color_system=None)
    monkeypatch.setattr(console, "Terminal", lambda: terminal)
    tracker = registries.trackers.find("console").cls
    return tracker(tracker.Config(), Run(tmp_path, "tiny")), screen.getvalue


def test_a_run_is_told_from_start_to_end(watched):
    tracker, printed = watched
    tracker.started(FACTS)
    assert "tiny: siglip + pixel_shuffle + smollm2, 1,234 parameters, on cpu in fp32" in printed()
    assert "run folder: runs/tiny/now" in printed()
    for step in range(1, 101):
        tracker.step_finished({"step": step, **METRICS})
    tracker.evaluated({"step": 100, "validation_loss": 0.5})
    result = {"benchmark": "shapes", "accuracy": 0.75, "ci95": [0.5, 0.9], "controls": {"no_image": 0.25}}
    tracker.evaluated({"step": 100, **result})
    tracker.finished({})
    assert "loss 1.250  10 samples/s  2,000 tokens/s" in printed()
    assert "step 100: validation loss 0.500" in printed()
    assert "step 100: shapes: accuracy 75.0% [50.0%, 90.0%], no image 25.0%" in printed()


@pytest.mark.parametrize("watched", [False], ids=["log file"], indirect=True)
def test_a_log_file_gets_some_lines_only(watched):
    tracker, printed = watched
    tracker.started(FACTS)
    for step in range(1, 101):
        tracker.step_finished({"step": step, **METRICS})
    lines = [line for line in printed().splitlines() if line.startswith("step ")]
    assert len(lines) == 20
    assert lines[-1].startswith("step 100/100  loss 1.250")


def test_what_is_used_in_the_place_of_something_is_said_once(watched):
    tracker, printed = watched
    tracker.started(FACTS | {"notes": ["attention: samples are [grouped]"]})
    tracker.finished({})
    assert printed().count("attention: samples are [grouped]") == 1


def test_utilisation_is_shown_where_it_is_known(watched):
    tracker, printed = watched
    tracker.started(FACTS)
    tracker.step_finished({"step": 100, **METRICS, "mfu": 0.334})
    tracker.finished({})
    assert "2,000 tokens/s  33% of the GPU's FLOPs" in printed()


@pytest.mark.parametrize("watched", [False], ids=["log file"], indirect=True)
def test_the_time_left_of_a_run_that_goes_on_is_told_by_its_own_steps(watched, monkeypatch):
    tracker, printed = watched
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    tracker.started(FACTS | {"done_steps": 80})
    now[0] = 10.0
    tracker.step_finished({"step": 85, **METRICS})  # two seconds each
    assert "30 s left" in printed()


def test_a_slow_run_shows_tenths(watched):
    tracker, printed = watched
    tracker.started(FACTS)
    tracker.step_finished({"step": 100, **METRICS, "samples_per_second": 0.25, "tokens_per_second": 9.96})
    tracker.finished({})
    assert "0.2 samples/s  10.0 tokens/s" in printed()


def test_a_step_without_a_loss_does_no_harm(watched):
    tracker, printed = watched
    tracker.started(FACTS)
    tracker.step_finished({"step": 100, "samples_per_second": 1.0, "tokens_per_second": 1.0})
    tracker.finished({})
    assert "loss nan" in printed()


@pytest.mark.parametrize("watched", [True], ids=["terminal"], indirect=True)
@pytest.mark.parametrize("end", ["finished", "failed"])
def test_the_terminal_is_given_back_however_a_run_ends(watched, end):
    hide, show = "\x1b[?25l", "\x1b[?25h"  # the cursor
    tracker, printed = watched
    tracker.started(FACTS)
    tracker.step_finished({"step": 1, **METRICS})
    assert hide in printed()
    assert show not in printed()
    getattr(tracker, end)({} if end == "finished" else KeyboardInterrupt())
    assert show in printed()


def test_a_run_that_never_started_has_nothing_to_give_back(watched):
    tracker, printed = watched
    tracker.failed(RuntimeError("before the start"))
    assert printed() == ""


def test_brackets_in_a_name_are_shown_as_they_are(watched):
    tracker, printed = watched
    tracker.started({**FACTS, "run": "runs/[/x]/[bold]"})
    tracker.finished({"wholly_skipped": ["data.train.0, subset '[red]': all 4"]})
    assert "run folder: runs/[/x]/[bold]" in printed()
    assert "subset '[red]': all 4" in printed()
