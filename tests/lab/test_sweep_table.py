"""The table of a sweep's runs says how far each is, from its files as they happen to be."""

import io
import json

import pytest
from rich.console import Console
from tiny import tiny_experiment

from nanovlm.files import write_whole
from nanovlm.lab.sweep.board import Board, Progress, read_progress, time_left
from nanovlm.lab.sweep.sweep import RunState, SweepRun
from nanovlm.yaml_reader import dump_yaml

STEP = {"event": "step", "step": 4, "loss": 1.25, "samples": 32, "seconds": 2.0, "samples_per_second": 16.0}


@pytest.fixture
def run(tmp_path):
    return SweepRun("factor=2", 0, tmp_path / "factor=2" / "s0")


def log(run, *lines):
    write_whole(run.run.metrics, "".join(line if isinstance(line, str) else f"{json.dumps(line)}\n" for line in lines))


def ask(run, budget):
    write_whole(run.experiment, dump_yaml(tiny_experiment(budget).model_dump()))


def finish(run, **benchmarks):
    log(run, STEP)
    summary = {
        "steps": 4,
        "wall_seconds": 9.0,
        "benchmarks": {n: {"accuracy": value} for n, value in benchmarks.items()},
    }
    run.run.write_json(run.run.summary, summary)


def state(variant, seed, state, folder, reason=""):
    return RunState(variant, seed, folder / variant / f"s{seed}", state, reason, folder / variant / f"s{seed}.log")


@pytest.mark.parametrize("summary", ["", '{"steps": 4', "{}", "[]", '{"steps": 4, "benchmarks": []}'])
def test_a_damaged_summary_does_not_end_the_sweep(run, summary):
    log(run, STEP)
    write_whole(run.run.summary, summary)
    assert read_progress(run.is_("done")) == Progress(loss=1.25)


def test_of_a_run_that_has_not_begun_nothing_is_known(run):
    assert read_progress(run.is_("running")) == Progress()


def test_a_running_one_says_its_step_its_loss_and_the_time_left(run):
    ask(run, "training.steps=10")
    log(run, STEP | {"step": 3, "loss": 9.0}, STEP)
    # 6 more steps of 8 samples, 16 of them a second
    assert read_progress(run.is_("running")) == Progress(step=4, total=10, loss=1.25, seconds=2.0, left=3.0)


@pytest.mark.parametrize(
    "last",
    ['{"event": "step", "step": 5, "lo', '{"event": "evaluation", "step": 4}\n', "5\n", json.dumps({"x": "y" * 9000})],
)
def test_a_torn_line_and_what_is_no_step_are_passed_over(run, last):
    log(run, STEP, last)
    assert read_progress(run.is_("running")).step == 4


def test_only_the_end_of_a_long_log_is_read(run):
    log(run, *(STEP | {"step": step} for step in range(5000)))
    assert read_progress(run.is_("running")).step == 4999


@pytest.mark.parametrize(
    ("budget", "total"), [("training.steps=7", 7), ("training.samples=50", 7), ("training.flops=1e12", None)]
)
def test_the_number_of_steps_is_known_before_the_run_unless_its_data_decide_it(run, budget, total):
    ask(run, budget)
    assert read_progress(run.is_("running")).total == total


def test_a_lost_loss_is_left_out(run):
    log(run, STEP | {"loss": None})
    assert read_progress(run.is_("running")).loss is None


def test_a_finished_one_says_its_accuracies(run):
    finish(run, shapes=0.5, mmstar=0.25)
    progress = read_progress(run.is_("done"))
    assert progress == Progress(4, 4, 1.25, {"shapes": 0.5, "mmstar": 0.25}, 9.0)


@pytest.mark.parametrize(
    ("others", "slots", "left"),
    [
        ([], 1, 0.0),
        ([("a", "waiting", 0)], 1, 10.0),  # as long as the other run of this variant
        ([("b", "waiting", 0)], 1, 10.0),  # as long as those of other variants
        ([("a", "running", 4)], 1, 6.0),
        ([("a", "running", 40)], 1, 0.0),
        ([("a", "waiting", 0)] * 4, 2, 20.0),
        ([("a", "waiting", 0)], 2, 10.0),  # one run is not shared by two slots
        ([("a", "failed", 3), ("a", "stopped", 3)], 1, 0.0),
    ],
)
def test_the_time_left_is_judged_by_the_runs_that_have_finished(tmp_path, others, slots, left):
    rows = [(state("a", 0, "done", tmp_path), Progress(seconds=10.0))]
    rows += [(state(variant, 1, what, tmp_path), Progress(seconds=seconds)) for variant, what, seconds in others]
    assert time_left(rows, slots) == left


def test_before_the_first_run_has_finished_no_time_is_given(tmp_path):
    assert time_left([(state("a", 0, "running", tmp_path), Progress(seconds=10.0))], 1) is None


def test_without_a_terminal_each_change_of_state_is_one_line(run, tmp_path):
    out = io.StringIO()
    other = SweepRun("factor=1", 0, tmp_path / "factor=1" / "s0")
    with Board(Console(file=out, width=40), "question") as board:
        board.show([run.is_("waiting"), other.is_("waiting")])
        board.show([run.is_("running"), other.is_("waiting")])
        board.show([run.is_("running"), other.is_("waiting")])
        finish(run, shapes=0.5)
        board.show([run.is_("done"), other.is_("running")])
        board.show([run.is_("done"), other.is_("failed", "ValueError: [red]a bug[/]")])
    assert out.getvalue().splitlines() == [
        "factor=2/s0: running; 0 of 2 done",
        "factor=2/s0: done, loss 1.250, accuracy 50.0%; 1 of 2 done, about 9 s left",
        "factor=1/s0: running; 1 of 2 done, about 9 s left",
        f"factor=1/s0: failed: ValueError: [red]a bug[/] (see {other.log}); 1 of 2 done, 1 failed",
    ]


def test_in_a_terminal_one_table_is_updated_in_place(run):
    ask(run, "training.steps=10")
    out = io.StringIO()
    with Board(Console(file=out, force_terminal=True, width=100, height=40), "question in runs") as board:
        board.show([run.is_("running")])
        log(run, STEP)
        board.show([run.is_("running")])
        finish(run, shapes=0.5)
        board.show([run.is_("done")])
    first, second, third, *_, last = out.getvalue().split("question in runs")[1:]
    assert "running" in first and "0/10" in first
    assert "4/10" in second and "1.250" in second and "3 s" in second
    assert all("4/4" in picture and "50.0%" in picture and "1 of 1 done" in picture for picture in (third, last))
    assert "\x1b[1A" in first  # the cursor goes up: what comes next is drawn over it


def test_in_a_terminal_a_failure_is_told_above_the_table(run):
    out = io.StringIO()
    with Board(Console(file=out, force_terminal=True, width=100, height=40), "question") as board:
        for _ in range(3):
            board.show([run.is_("failed", "ValueError: [a bug]")])
    assert out.getvalue().count(f"factor=2/s0: failed: ValueError: [a bug] (see {run.log})") == 1


def test_a_low_terminal_shows_the_runs_that_something_happens_to(tmp_path):
    out = io.StringIO()
    what = {3: "running", 7: "failed", 9: "stopped"}
    found = [state("a", seed, what.get(seed, "waiting"), tmp_path) for seed in range(30)]
    with Board(Console(file=out, force_terminal=True, width=100, height=20), "question") as board:
        board.show(found)
        drawn = out.getvalue().split("question")[-1]
    rows = [line for line in drawn.splitlines() if "│" in line]
    assert [int(row.split("│")[2]) for row in rows] == [3, 7, 9]
    assert "0 of 30 done, 1 failed, 1 stopped" in drawn
    last = out.getvalue().split("question")[-1]
    assert len([line for line in last.splitlines() if "│" in line]) == 30  # in the end all are told
