"""What every tracker must do: it is told of a run's moments, in their order, as the trainer tells them."""

from __future__ import annotations

import io
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from nanovlm.components import Tracker
from nanovlm.data.dataset import Sample, Turn
from nanovlm.evaluation.evaluator import Answered, Evaluation, Item
from nanovlm.testing.checks import Subject, Violation, check, doing, log_file
from nanovlm.testing.models import few
from nanovlm.testing.surroundings import Surroundings, elsewhere, randomness_untouched
from nanovlm.training.run import Run
from nanovlm.yaml_reader import dump_yaml

STEPS = 4
DEVICE = {"device": "cpu", "precision": "fp32", "ranks": 1}
RATES = {"seconds": 2.0, "samples": 16.0, "samples_per_second": 8.0, "tokens_per_second": 160.0, "data_wait": 0.1}
LEARNT = {"loss": 2.5, "grad_norm": 1.5, "lost_updates": 0.0, "lost_in_a_row": 0.0, "given/data.train.0": 8.0}


class Moment(NamedTuple):
    """What a tracker is told: the method, and what it is given."""

    name: str
    given: tuple[Any, ...]

    def tell(self, tracker: Any, subject: Subject) -> None:
        with doing(f"when it is told that a run {SAID[self.name]}", subject):
            getattr(tracker, self.name)(*self.given)


SAID = {
    "started": "has started",
    "step_finished": "has finished a step",
    "evaluated": "was evaluated",
    "finished": "has finished",
    "failed": "has failed",
}


def started(run: Run, done: int = 0) -> Moment:
    parts = {"vision_encoder": "encoder", "projector": "projector", "language_decoder": "decoder"}
    where = {"run": str(run.folder), "total_steps": STEPS, "parameters": 1234, "workers": 0, "done_steps": done}
    return Moment("started", (where | parts | DEVICE | {"notes": ["a note with [brackets]"]},))


def steps(done: int = 0) -> list[Moment]:
    """Such as every run has, one of which all samples were skipped, and one whose loss was no number."""
    lost = {"loss": math.nan, "grad_norm": math.nan, "lost_updates": 1.0, "lost_in_a_row": 1.0}
    kinds: list[dict[str, float]] = [LEARNT, {}, LEARNT | lost, LEARNT | {"mfu": 0.4}]
    beside = {"learning_rate/projector": 1e-3, **RATES, "skipped": 0, "peak_memory_bytes": 10**6}
    return [Moment("step_finished", ({"step": n, **beside, **kinds[n - 1]},)) for n in range(done + 1, STEPS + 1)]


def evaluations(step: int) -> list[Moment]:
    """On held-out samples of one and of several datasets; of a benchmark, with and without controls and answers."""
    evaluation = Evaluation("colours", [item for _, item in answers()])
    last = Evaluation("colours", evaluation.items, {"shuffled": 0.5, "no_image": 0.0}, {"answered": 1.0})
    results = {"step": step, "benchmark": "colours"}
    by_dataset = {"validation_loss/data.train.0": 1.5, "validation_loss/data.train.1": 2.5}
    return [
        Moment("evaluated", ({"step": step, "validation_loss": 2.0},)),
        Moment("evaluated", ({"step": step, "validation_loss": 2.0, **by_dataset},)),
        Moment("evaluated", (results | evaluation.summary(), answers())),
        Moment("evaluated", (results | last.summary(), [])),
    ]


def answers() -> list[Answered]:
    """A large picture, an encoded one, and a question about none."""
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8), "blue").save(encoded, "PNG")
    large = Image.new("RGB", (700, 600), "red")
    pictures: dict[str, list[Any]] = {"red": [large], "blue": [encoded.getvalue()], "": []}
    return [
        (
            Sample(images, [Turn("What colour?", colour or "none")], f"colours/{colour}", category="plain"),
            Item(f"colours/{colour}", "What colour?", "red", colour or "none", float(colour == "red"), "plain"),
        )
        for colour, images in pictures.items()
    ]


def finished() -> Moment:
    evaluation = Evaluation("colours", [item for _, item in answers()])
    summary = {
        "name": "check", "seed": 0, "steps": STEPS, **RATES, "tokens": 320, "work": {"images": 16, "tokens": 320},
        "wall_seconds": 3.0, "lost_updates": 1, "skipped": {"too long": 2}, "wholly_skipped": ["all of data.train.0"],
        "validation_loss": 2.0, "benchmarks": {"colours": evaluation.summary()}, "peak_memory_bytes": 10**6, **DEVICE,
    }  # fmt: skip
    return Moment("finished", (summary,))


def failed(error: BaseException) -> Moment:
    return Moment("failed", (error,))


def until_its_end(run: Run, done: int = 0) -> list[Moment]:
    """Every moment but the last."""
    middle, *rest = steps(done)
    return [started(run, done), middle, *evaluations(done + 1), *rest, *evaluations(STEPS)]


@contextmanager
def new_run() -> Iterator[tuple[Run, Surroundings]]:
    """A run's folder that holds what it does before a tracker is built."""
    with elsewhere() as place:
        run = Run(place.folder / "runs" / "check" / "1", "check")
        run.folder.mkdir(parents=True)
        run.experiment.write_text(dump_yaml({"name": "check", "seed": 0, "trackers": []}), encoding="utf-8")
        yield run, place


def built(subject: Subject, run: Run) -> Any:
    with doing("to be built for a run, with its config and the run", subject):
        return subject.cls(subject.config, run)


def tell(subject: Subject, run: Run, moments: Sequence[Moment]) -> None:
    """Of a run that a new one watches."""
    tracker = built(subject, run)
    for moment in moments:
        moment.tell(tracker, subject)


class Terminal(io.TextIOWrapper):
    """Where progress is shown live."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")

    def isatty(self) -> bool:
        return True


@check("tracker")
def is_a_tracker_of_its_run(subject: Subject) -> None:
    """is a `Tracker` of the run that it is built for."""
    with new_run() as (run, _):
        tracker = built(subject, run)
        if not isinstance(tracker, Tracker):
            raise Violation("is no Tracker: derive it from nanovlm.Tracker, so that moments it leaves out are there")
        if getattr(tracker, "run", None) is not run:
            raise Violation("does not know its run: call super().__init__(config, run)")


@check("tracker")
def can_be_told_every_moment(subject: Subject) -> None:
    """can be told every moment of a run, also of a step without a loss, in a terminal and in a log file."""
    for output in (log_file(), Terminal()):
        with new_run() as (run, _), redirect_stdout(output), redirect_stderr(output):
            tell(subject, run, [*until_its_end(run), finished()])


@check("tracker")
def can_be_told_of_a_failure(subject: Subject) -> None:
    """can be told of an error or an interrupt in the place of the end, even before anything else."""
    for error in (RuntimeError("out of memory"), KeyboardInterrupt()):
        with new_run() as (run, _):
            tell(subject, run, [*until_its_end(run)[:4], failed(error)])
    with new_run() as (run, _), doing("before it was told of a start", subject):
        tell(subject, run, [failed(OSError("another tracker did not start"))])


@check("tracker")
def closes_behind_itself(subject: Subject) -> None:
    """leaves nothing behind when a run ends, well or not: the terminal is given back, and no thread waits."""
    for last in (finished(), failed(RuntimeError("out of memory"))):
        output, threads = Terminal(), _threads()
        with new_run() as (run, place), redirect_stdout(output), redirect_stderr(output):
            tell(subject, run, [*until_its_end(run), last])
            streams = {"sys.stdout": sys.stdout, "sys.stderr": sys.stderr}
            kept = [name for name, stream in streams.items() if stream is not output]
            moved = Path.cwd() != place.work
        ended = f"when it is told that a run {SAID[last.name]}"
        if kept:
            raise Violation(f"keeps {few(kept)} {ended}: give back what it replaced, in finished and in failed")
        if moved:
            raise Violation(f"leaves another working directory behind {ended}")
        if waiting := sorted(_threads() - threads):
            raise Violation(f"leaves the thread {waiting[0]} running {ended}, and the process could not end")


def _threads() -> set[str]:
    """Those that a process waits for before it ends."""
    return {f"{thread.name} ({thread.ident})" for thread in threading.enumerate() if not thread.daemon}


@check("tracker")
def runs_follow_each_other(subject: Subject) -> None:
    """watches run after run in one process, and one that goes on in its folder."""
    for last in (failed(RuntimeError("out of memory")), finished()):
        with new_run() as (run, _), doing("of a second run in one process", subject):
            tell(subject, run, [*until_its_end(run), last])
            with doing("of a run that goes on in its folder", subject):
                tell(subject, run, [*until_its_end(run, done=2), finished()])


@check("tracker")
def writes_in_its_run_only(subject: Subject) -> None:
    """writes nothing but in its run's folder, and leaves there what is not its own."""
    with new_run() as (run, place):
        before = run.experiment.read_bytes()
        tell(subject, run, [*until_its_end(run), finished()])
        runs = place.folder / "runs"
        beside = [f for f in runs.rglob("*") if not (f.is_dir() or f.is_relative_to(run.folder))]
        if written := [*place.written, *(str(file.relative_to(runs)) for file in beside)]:
            raise Violation(f"writes {few(written)} outside of the run's folder: write to self.run.folder")
        if not run.experiment.is_file() or run.experiment.read_bytes() != before:
            raise Violation("changes the run's experiment.yaml, with which it is repeated: write files of its own")


@check("tracker")
def sends_nothing_unasked(subject: Subject) -> None:
    """reaches for nothing beyond this machine unless its options say so."""
    with new_run() as (run, place):
        tell(subject, run, [*until_its_end(run), finished()])
        if place.reached:
            raise Violation(f"tries to reach {place.reached[0]} by Config.tiny(): send nothing that nobody asked for")


@check("tracker")
def leaves_what_it_is_told(subject: Subject) -> None:
    """leaves the facts, metrics, results and samples that it is told as they are: all trackers are told the same."""
    with new_run() as (run, _):
        tracker = built(subject, run)
        for moment in [*until_its_end(run), finished()]:
            before = deepcopy(moment.given)
            moment.tell(tracker, subject)
            if moment.given != before:
                raise Violation(f"changes what it is given when it is told that a run {SAID[moment.name]}: copy it")


@check("tracker")
def randomness_is_left_alone(subject: Subject) -> None:
    """leaves the random state of torch, numpy and Python as it was."""
    with new_run() as (run, _):
        for moments in ([*until_its_end(run), finished()], [started(run), failed(RuntimeError("out of memory"))]):
            with randomness_untouched("while it watches a run"):
                tell(subject, run, moments)
