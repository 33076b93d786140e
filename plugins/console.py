"""A run's progress in the terminal: one live line, or in a log file one line now and then."""

import math
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nanovlm import ComponentConfig, Tracker, hookimpl
from nanovlm.evaluation.evaluator import Answered
from nanovlm.training.clock import per_second

LINES = 20  # a run without a terminal prints about so many


class Console(Tracker):
    class Config(ComponentConfig):
        pass

    progress: Progress | None = None  # in a terminal, from the start to the end of a run

    def started(self, facts: dict[str, Any]) -> None:
        self.terminal = Terminal()
        self.total, self.done = facts["total_steps"], facts.get("done_steps", 0)
        self.start = time.monotonic()
        parts = f"{facts['vision_encoder']} + {facts['projector']} + {facts['language_decoder']}"
        where = f"on {facts['device']} in {facts['precision']}"
        self.say(f"{self.run.name}: {parts}, {facts['parameters']:,} parameters, {where}")
        self.say(f"run folder: {facts['run']}")
        for note in facts.get("notes", ()):
            self.say(note)
        if self.terminal.is_terminal:
            columns = (BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"), TimeRemainingColumn())
            self.progress = Progress(*columns, console=self.terminal)
            self.task = self.progress.add_task("", total=self.total, completed=self.done, figures="")
            self.progress.start()

    def step_finished(self, metrics: dict[str, float]) -> None:
        step = int(metrics["step"])
        loss = metrics.get("loss", math.nan)
        samples, tokens = (per_second(metrics[f"{what}_per_second"]) for what in ("samples", "tokens"))
        utilisation = f"  {metrics['mfu']:.0%} of the GPU's FLOPs" if "mfu" in metrics else ""
        figures = f"loss {loss:.3f}  {samples} samples/s  {tokens} tokens/s{utilisation}"
        if self.progress:
            self.progress.update(self.task, completed=step, figures=figures)
        elif step == self.total or step % max(1, self.total // LINES) == 0:
            left = (time.monotonic() - self.start) / max(1, step - self.done) * (self.total - step)
            self.say(f"step {step}/{self.total}  {figures}  {left:,.0f} s left")

    def evaluated(self, results: dict[str, Any], answered: Sequence[Answered] = ()) -> None:
        if "benchmark" in results:
            low, high = results["ci95"]
            controls = "".join(f", {name.replace('_', ' ')} {value:.1%}" for name, value in results["controls"].items())
            figures = f"{results['benchmark']}: accuracy {results['accuracy']:.1%} [{low:.1%}, {high:.1%}]{controls}"
        else:
            figures = f"validation loss {results['validation_loss']:.3f}"
        self.say(f"step {results['step']}: {figures}")

    def finished(self, summary: dict[str, Any]) -> None:
        self.close()
        for sentence in summary.get("wholly_skipped", ()):
            self.say(f"nothing used: {sentence}")

    def failed(self, error: BaseException) -> None:
        self.close()

    def say(self, line: str) -> None:
        """Whole, and as it is: what stands in brackets is part of a name."""
        self.terminal.print(line, soft_wrap=True, highlight=False, markup=False)

    def close(self) -> None:
        """Give the terminal back: a live line hides the cursor."""
        if self.progress:
            self.progress.stop()


@hookimpl
def register_trackers(register):
    register("console", Console)
