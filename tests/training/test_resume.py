"""A run that ended on the way goes on as if it never had: bit for bit, on a CPU in single precision."""

import errno
import gc
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from finished import Finished, same
from tiny import tiny_experiment

from nanovlm import CheckpointError, ConfigError, resume, train
from nanovlm.training.interrupts import Stopped
from nanovlm.training.trackers import MetricsLog
from nanovlm.training.trainer import Trainer

# All that a run carries along: validation, a benchmark on the way, a thawing component, clipping, dropout, checkpoints.
BUSY = (
    "training.steps=7", "training.samples_per_step=6", "training.tokens_per_row=150", "training.max_grad_norm=0.5",
    "training.frozen_until_step.vision_encoder=3", "language_decoder.lora={rank: 2, dropout: 0.5}",
    "data.validation={share: 0.1, every: 2}", "benchmarks.0.every=3", "benchmarks.0.limit=4", "checkpoints.every=2",
)  # fmt: skip
TIMES = ("_per_second", "data_wait", "seconds", "peak_memory_bytes", "mfu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Finished:
    """The busy run without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return Finished(folder, train(tiny_experiment(*BUSY), folder))


def stop_after(step: int, monkeypatch) -> None:
    """Runs are told to end once they have taken this step."""
    report = Trainer.report

    def told(trainer, metrics):
        report(trainer, metrics)
        if trainer.step == step:
            trainer.interrupts.requested = "SIGTERM"

    monkeypatch.setattr(Trainer, "report", told)


def timeless(facts: dict) -> dict:
    return {key: value for key, value in facts.items() if not key.endswith(TIMES) and key not in ("run", "name")}


def check_equal(folder: Path, whole: Finished) -> None:
    found = Finished(folder, {})
    for model in (path.name for path in whole.folder.glob("model*")):
        assert same(found.tensors(model), whole.tensors(model))
    for kind in ("step", "evaluation"):
        assert [timeless(event) for event in found.events(kind)] == [timeless(event) for event in whole.events(kind)]
    files = {path.relative_to(folder) for path in (folder / "evaluation").rglob("*.jsonl")}
    assert files == {path.relative_to(whole.folder) for path in (whole.folder / "evaluation").rglob("*.jsonl")}
    for file in files:
        assert (folder / file).read_text() == (whole.folder / file).read_text()


@pytest.mark.parametrize("step", range(1, 8))
def test_a_run_goes_on_from_any_step_as_if_it_had_never_ended(whole, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        with pytest.raises(
            Stopped, match=rf"^stopped after step {step} of 7; go on with nanovlm train --resume .*run$"
        ):
            train(tiny_experiment(*BUSY), tmp_path / "run")
    summary = resume(tmp_path / "run")
    assert timeless(summary) == timeless(whole.summary)
    check_equal(tmp_path / "run", whole)


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (1, 3)])
def test_the_number_of_workers_may_change(whole, tmp_path, monkeypatch, before, after):
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(Stopped):
            train(tiny_experiment(*BUSY, f"data.workers={before}"), tmp_path / "run")
    resume(tmp_path / "run", [f"data.workers={after}"])
    check_equal(tmp_path / "run", whole)


def test_a_run_may_end_again_and_again(whole, tmp_path, monkeypatch):
    for step in range(1, 8):
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            stop_after(step, patch)
            resume(tmp_path / "run") if step > 1 else train(tiny_experiment(*BUSY), tmp_path / "run")
    resume(tmp_path / "run")
    check_equal(tmp_path / "run", whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_at_its_next_sample(tmp_path, monkeypatch, workers):
    streamed = (
        "data.train=[{name: the_cauldron, source: tiny, subsets: all, streaming: true}]",
        "training.steps=9", "training.samples_per_step=3", "benchmarks=[]",
    )  # fmt: skip
    whole = train(tiny_experiment(*streamed), tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(5, patch)
        train(tiny_experiment(*streamed, f"data.workers={workers}"), tmp_path / "run")
    resume(tmp_path / "run", [f"data.workers={2 - workers}"])
    assert whole["samples"] > 9
    check_equal(tmp_path / "run", Finished(tmp_path / "whole", whole))


def forked(work, *arguments) -> int:
    """``work`` in a process of its own that has imported everything already; its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        work(*arguments)
        status = 0
    except Stopped:
        status = 3
    finally:
        os._exit(status)


def begin_or_go_on(folder: Path, overrides: tuple[str, ...]) -> None:
    if (folder / "provenance.json").exists():
        resume(folder)
    else:
        train(tiny_experiment(*overrides), folder)


def killed_runs(folder: Path, overrides: tuple[str, ...], kills: int, seconds: float) -> int:
    """Kill a run at random moments until it has been killed so often, then let it end; how often it was in time."""
    moments, killed = random.Random(0), 0
    for _ in range(kills):
        child = forked(begin_or_go_on, folder, overrides)
        time.sleep(moments.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if not (folder / "provenance.json").exists():  # killed before it began
            for left in sorted(folder.rglob("*"), reverse=True):
                left.rmdir() if left.is_dir() else left.unlink()
    child = forked(begin_or_go_on, folder, overrides)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return killed


@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_at_any_moment_goes_on(tmp_path, kills):
    """While it steps, evaluates, writes a checkpoint, begins or ends."""
    longer = (*BUSY[1:], f"training.steps={4 * kills}")
    whole = Finished(tmp_path / "whole", train(tiny_experiment(*longer), tmp_path / "whole"))
    assert killed_runs(tmp_path / "run", longer, kills, seconds=1.0) > kills / 2
    check_equal(tmp_path / "run", whole)


LONG = (*BUSY[1:], "training.steps=100000")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_with_a_checkpoint(tmp_path, number, workers):
    """To all processes of its group, as a terminal and a scheduler send it."""

    def begin() -> None:
        os.setpgid(0, 0)
        train(tiny_experiment(*LONG, f"data.workers={workers}"), tmp_path / "run")

    child = forked(begin)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists():
        time.sleep(0.01)
    os.killpg(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    last = Finished(tmp_path / "run", {}).events("step")[-1]["step"]
    assert (tmp_path / "run" / "checkpoints" / f"{last:08}").is_dir()


def test_a_second_signal_ends_it_at_once(tmp_path, monkeypatch):
    def endless(trainer, metrics):
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(Trainer, "report", endless)
    child = forked(train, tiny_experiment(*LONG), tmp_path / "run")
    while not (tmp_path / "run" / "provenance.json").exists():
        time.sleep(0.01)
    time.sleep(1)
    os.kill(child, signal.SIGINT)
    time.sleep(0.2)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it waits for its step
    os.kill(child, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.fixture
def stopped(tmp_path, monkeypatch) -> Path:
    """A run that was stopped after four of seven steps."""
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(4, patch)
        train(tiny_experiment(*BUSY), tmp_path / "run")
    return tmp_path / "run"


def test_a_changed_experiment_is_refused_with_all_that_differs(stopped):
    changes = ["projector.factor=4", "training.learning_rate.projector=0.5", "training.log_every=3"]
    with pytest.raises(ConfigError) as caught:
        resume(stopped, changes)
    assert str(caught.value) == (
        f"--resume {stopped}: only length, logging and hardware may change on the way:\n"
        "  projector.factor: 2 in the run, 4 asked for\n"
        "  training.learning_rate.projector: 0.002 in the run, 0.5 asked for\n"
        "Leave the changes out, or begin a new run with them"
    )


def test_another_experiment_file_is_compared_too(stopped):
    with pytest.raises(ConfigError, match=r"projector\.factor: 2 in the run, 4 asked for"):
        resume(stopped, experiment=tiny_experiment(*BUSY, "projector.factor=4"))
    assert resume(stopped, experiment=tiny_experiment(*BUSY))["steps"] == 7


@pytest.mark.parametrize(
    ("change", "written"),
    [
        ("training.steps=9", "steps: 9"),
        ("training.log_every=2", "log_every: 2"),
        ("trackers=[console]", "name: console"),
        ("data.workers=1", "workers: 1"),
        ("training.precision=fp32", "precision: fp32"),
    ],
)
def test_length_logging_and_hardware_may_change(stopped, change, written):
    assert written not in (stopped / "experiment.yaml").read_text()
    summary = resume(stopped, [change])
    assert summary["steps"] == (9 if "steps" in change else 7)
    assert written in (stopped / "experiment.yaml").read_text()  # what the run does now


def test_a_run_is_not_made_shorter_than_it_is(stopped):
    with pytest.raises(ConfigError, match=r"it has trained for 4 steps already, not 3"):
        resume(stopped, ["training.steps=3"])


def test_a_finished_run_can_be_made_longer(tmp_path):
    train(tiny_experiment(*BUSY, "training.schedule=constant"), tmp_path / "short")
    train(tiny_experiment(*BUSY, "training.schedule=constant", "training.steps=9"), tmp_path / "long")
    resume(tmp_path / "short", ["training.steps=9"])
    assert same(Finished(tmp_path / "short", {}).tensors(), Finished(tmp_path / "long", {}).tensors())


def test_a_run_without_a_checkpoint_begins_anew(whole, tmp_path, monkeypatch):
    def broken(trainer):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", broken)
        with pytest.raises(ZeroDivisionError):
            train(tiny_experiment(*BUSY), tmp_path / "run")
    resume(tmp_path / "run")
    check_equal(tmp_path / "run", whole)


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(5, patch)
        train(tiny_experiment(*BUSY), tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "00000005" / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    told = []
    monkeypatch.setattr("nanovlm.training.trackers.MetricsLog.started", lambda self, facts: told.extend(facts["notes"]))
    resume(tmp_path / "run")
    assert any("00000005" in note and "optimizer.safetensors" in note for note in told)
    assert "going on after step 4" in told
    check_equal(tmp_path / "run", whole)


def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(whole, tmp_path, monkeypatch):
    """Here it is the log that cannot be written any more."""
    append = MetricsLog._append

    def full(log, line):
        if line["step"] == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(log, line)

    with monkeypatch.context() as patch, pytest.raises(CheckpointError) as caught:
        patch.setattr(MetricsLog, "_append", full)
        train(tiny_experiment(*BUSY), tmp_path / "run")
    assert str(caught.value).startswith("the run's files could not be written: ")
    assert "the last whole checkpoint is of step 4" in str(caught.value)
    assert "free space, then go on with `nanovlm train --resume " in str(caught.value)
    resume(tmp_path / "run")
    check_equal(tmp_path / "run", whole)


@pytest.mark.slow
def test_twenty_thousand_steps_leave_nothing_behind(tmp_path):
    """Memory settles, and no process, open file or temporary file is left."""
    readings, process = [], Path("/proc/self")
    report = Trainer.report

    def measured(trainer, metrics):
        report(trainer, metrics)
        if trainer.step % 1000 == 0:
            gc.collect()
            readings.append(int((process / "statm").read_text().split()[1]))

    def left() -> list[int]:
        return [len(list((process / "fd").iterdir())), len(multiprocessing.active_children())]

    train(tiny_experiment("data.workers=1"), tmp_path / "first")  # what a process opens once and keeps
    before = left()
    steps = ("training.steps=20000", "training.samples_per_step=2", "data.workers=1", "checkpoints.every=1000")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "report", measured)
        train(tiny_experiment(*steps, "data.validation={share: 0.1, every: 1000}"), tmp_path / "run")
    assert left() == before
    assert not list(tmp_path.rglob("*.part"))
    print(f"pages: {readings}")
    assert max(readings[4:]) < 1.02 * readings[3]


def test_other_data_are_refused(stopped):
    text = (stopped / "experiment.yaml").read_text()
    assert "train_size: 64" in text
    (stopped / "experiment.yaml").write_text(text.replace("train_size: 64", "train_size: 65"))
    with pytest.raises(ConfigError, match="the training data are not those that it began with"):
        resume(stopped)


def test_a_folder_is_one_runs_alone(stopped):
    from nanovlm.training.run import Run

    with Run.open(stopped).locked(), pytest.raises(ConfigError, match="another process trains in this folder"):
        resume(stopped)


def test_what_is_no_run_cannot_be_gone_on_with(tmp_path):
    with pytest.raises(ConfigError, match=r"^--resume .*: it holds no experiment\.yaml, so it is no run's folder$"):
        resume(tmp_path)
