"""The table of a sweep's runs: updated in place in a terminal, elsewhere a line whenever a run's state changes."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from nanovlm.errors import ConfigError
from nanovlm.experiment import load_experiment
from nanovlm.lab.report.tables import duration
from nanovlm.lab.sweep.sweep import RunState, SweepRun, tail
from nanovlm.training.run import Run

METRICS_END = 2**16  # bytes: the last line, and a long evaluation's after it
AROUND = 8  # a terminal's lines that are not the table's own
COLOURS = {"waiting": "dim", "running": "bold", "done": "green", "failed": "red", "stopped": "yellow"}


@dataclass(frozen=True)
class Progress:
    """How far a run is; None for what is not known (yet).

    seconds: what it took so far; of a run that is done, evaluations included
    left: seconds of training that are left
    """

    step: int | None = None
    total: int | None = None
    loss: float | None = None
    accuracy: dict[str, float] | None = None
    seconds: float = 0.0
    left: float | None = None


def read_progress(state: RunState) -> Progress:
    """From the run's own files, whatever is in them: it may be writing them."""
    run = Run(state.folder, "")
    event = last_step(run.metrics)
    loss = event.get("loss")
    if state.state == "done":
        try:
            summary = json.loads(run.summary.read_text(encoding="utf-8"))
            accuracy = {name: result["accuracy"] for name, result in summary["benchmarks"].items()}
            return Progress(summary["steps"], summary["steps"], loss, accuracy, summary["wall_seconds"])
        except (ValueError, LookupError, TypeError, AttributeError):  # damaged, as the comparison says in words
            return Progress(loss=loss)
    total = steps_asked_for(SweepRun(state.variant, state.seed, state.folder).experiment)
    if not event:
        return Progress(total=total)
    step, seconds, rate = event["step"], event.get("seconds", 0.0), event.get("samples_per_second", 0.0)
    left = (total - step) * event["samples"] / step / rate if total and step and rate else None
    return Progress(step, total, loss, None, seconds, left)


def last_step(metrics: Path) -> dict[str, Any]:
    """The last step that was logged; the very last line may be torn."""
    if not metrics.is_file():
        return {}
    for line in reversed(tail(metrics, METRICS_END).splitlines()):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") == "step":
            return event
    return {}


def steps_asked_for(experiment: Path) -> int | None:
    """As an experiment file says it; None of a budget in epochs or FLOPs, which the data decide."""
    try:
        training = load_experiment(experiment).training
    except ConfigError:  # not written yet
        return None
    return training.steps or math.ceil(training.samples / training.samples_per_step) or None


def time_left(rows: Sequence[tuple[RunState, Progress]], slots: int) -> float | None:
    """Seconds until all of them are done, if they take as long as the ones that are, of the same variant if any."""
    took: dict[str, list[float]] = {}
    for state, progress in rows:
        if state.state == "done":
            took.setdefault(state.variant, []).append(progress.seconds)
    every = [seconds for each in took.values() for seconds in each]
    if not every:
        return None
    left = []
    for state, progress in rows:
        if state.state in ("waiting", "running"):
            alike = took.get(state.variant, every)
            spent = progress.seconds if state.state == "running" else 0.0
            left.append(max(0.0, sum(alike) / len(alike) - spent))
    return max([sum(left) / slots, *left]) if left else 0.0


class Board:
    """``show`` it the states of all runs now and then; ``slots`` of them train at once."""

    def __init__(self, console: Console, title: str, slots: int = 1) -> None:
        self.console, self.title, self.slots = console, title, slots
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self.told: dict[tuple[str, int], str] = {}
        self.known: dict[tuple[str, int], tuple[RunState, Progress]] = {}

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:  # what was cut to the terminal's height is now told whole
            self.live.stop()
        if self.live and self.known:
            self.console.print(self.table(list(self.known.values())))

    def show(self, states: Sequence[RunState]) -> None:
        for state in states:
            key = state.variant, state.seed
            if state.state == "running" or self.known.get(key, (None,))[0] != state:
                self.known[key] = state, read_progress(state)
        rows = list(self.known.values())
        for state, progress in rows:
            is_new = self.told.get((state.variant, state.seed), "waiting") != state.state
            if is_new and (not self.live or state.state == "failed"):
                self.say(f"{state.variant}/s{state.seed}: {words(state, progress)}; {self.caption(rows)}")
            self.told[state.variant, state.seed] = state.state
        if self.live:
            self.live.update(self.table(self.fitting(rows)), refresh=True)

    def fitting(self, rows: list[tuple[RunState, Progress]]) -> list[tuple[RunState, Progress]]:
        """All of them, or where the terminal is too low those that something happens to, or went wrong with."""
        if len(rows) <= self.console.height - AROUND:
            return rows
        return [row for row in rows if row[0].state not in ("waiting", "done")]

    def table(self, rows: Sequence[tuple[RunState, Progress]]) -> Table:
        shown = Table(title=escape(self.title), title_justify="left", caption_justify="left")
        shown.add_column("variant", overflow="fold")
        for header in ("seed", "state"):
            shown.add_column(header, no_wrap=True)
        for header in ("step", "loss", "accuracy", "time left"):
            shown.add_column(header, justify="right", no_wrap=header != "accuracy")  # there may be several
        for state, progress in rows:
            colour = COLOURS[state.state]
            shown.add_row(
                escape(state.variant), str(state.seed), f"[{colour}]{state.state}[/]", *figures(state, progress)
            )
        shown.caption = self.caption(list(self.known.values()))
        return shown

    def caption(self, rows: Sequence[tuple[RunState, Progress]]) -> str:
        counts = Counter(state.state for state, _ in rows)
        words = [f"{counts['done']} of {len(rows)} done"]
        words += [f"{counts[name]} {name}" for name in ("failed", "stopped") if counts[name]]
        left = time_left(rows, self.slots) if counts["waiting"] + counts["running"] else None
        return ", ".join([*words, *([f"about {duration(left)} left"] if left is not None else [])])

    def say(self, line: str) -> None:
        """Whole, and as it is: what stands in brackets is part of a name."""
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)


def figures(state: RunState, progress: Progress) -> Iterator[str]:
    """The cells of a row; empty for what is not known."""
    yield f"{progress.step or 0}/{progress.total or '?'}" if progress.step or state.state == "running" else ""
    yield f"{progress.loss:.3f}" if progress.loss is not None else ""
    yield accuracies(progress.accuracy or {})
    yield duration(progress.left) if progress.left is not None and state.state == "running" else ""


def words(state: RunState, progress: Progress) -> str:
    """What became of a run."""
    if state.state == "failed":
        return f"failed: {state.reason} (see {state.log})"
    if state.state == "stopped":
        return f"stopped: {state.reason}"
    if state.state == "done":
        loss = f", loss {progress.loss:.3f}" if progress.loss is not None else ""
        return f"done{loss}" + (f", accuracy {accuracies(progress.accuracy)}" if progress.accuracy else "")
    return state.state


def accuracies(by_benchmark: dict[str, float]) -> str:
    """One is said alone, several with their benchmarks."""
    if len(by_benchmark) == 1:
        return f"{next(iter(by_benchmark.values())):.1%}"
    return ", ".join(f"{name} {value:.1%}" for name, value in by_benchmark.items())
