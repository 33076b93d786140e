"""The training loop, told as a story; every detail is one call down."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanovlm.blueprint import ROLES
from nanovlm.data.loader import HeldOut, Step, Steps
from nanovlm.data.packing import PackedRow
from nanovlm.data.tally import Tally
from nanovlm.data.workers import load, num_workers
from nanovlm.errors import DivergedError
from nanovlm.evaluation.evaluator import Evaluation, Questions, read_items, write_items
from nanovlm.evaluation.gallery import draw_gallery
from nanovlm.experiment import Experiment
from nanovlm.flops import Cost, peak_flops
from nanovlm.generation import evaluating
from nanovlm.model import VisionLanguageModel
from nanovlm.training.blocks import eager, prepare_blocks
from nanovlm.training.clock import Clock
from nanovlm.training.memory import MemoryWatch, peak_memory
from nanovlm.training.optimizer import Optimizer
from nanovlm.training.precision import Precision, attention_note
from nanovlm.training.run import Run
from nanovlm.training.trackers import Trackers

MOST_LOST = 10  # updates in a row


@dataclass
class Parts:
    """What a trainer works with; ``nanovlm.train`` puts it together."""

    experiment: Experiment
    model: VisionLanguageModel
    steps: Steps
    held_out: HeldOut
    benchmarks: list[Questions]
    trackers: Trackers
    run: Run
    cost: Callable[[tuple[str, ...]], Cost]  # by the components that are trained
    plugin_files: Sequence[str] = ()


class Trainer:
    def __init__(self, parts: Parts) -> None:
        self.model, self.held_out, self.benchmarks, self.trackers, self.run, self.cost = (
            parts.model, parts.held_out, parts.benchmarks, parts.trackers, parts.run, parts.cost,
        )  # fmt: skip
        self.experiment, self.config = parts.experiment, parts.experiment.training
        self.device = self.model.device
        self.precision = Precision(self.config.precision, self.device)
        self.total_steps = len(parts.steps)
        self.optimizer = Optimizer(self.model, self.config, self.total_steps, self.precision)
        prepare_blocks(self.model, self.config)
        self.workers, self.plugin_files = num_workers(parts.experiment.data.workers), parts.plugin_files
        self.step, self.steps = 0, self.load(parts.steps)
        self.clock = Clock(peak_flops(self.device, self.precision.name))
        self.memory, self.tally = MemoryWatch(), Tally()
        self.results: dict[str, Any] = {}

    def train(self) -> dict[str, Any]:
        try:
            return self.run_through()
        except BaseException as error:  # an interrupt, too
            self.trackers.failed(error)
            raise
        finally:
            self.steps.close()  # a stream is still being read

    def run_through(self) -> dict[str, Any]:
        self.started()
        self.ask_bare_decoder()
        while self.step < self.total_steps:
            metrics = self.train_step()
            self.step += 1
            self.report(metrics)
            if self.is_time(self.experiment.data.validation.every):
                self.validate()
            for benchmark, choice in zip(self.benchmarks, self.experiment.benchmarks, strict=True):
                if self.is_time(choice.every):
                    self.evaluate(benchmark)
        return self.finish()

    def train_step(self) -> dict[str, Any]:
        for role in ROLES:  # a frozen component keeps still: no dropout
            getattr(self.model, role).train(self.optimizer.trains(role))
        with self.clock.waiting():
            step = next(self.steps)  # one step's samples, in one or a few packed rows
        self.count(step)
        metrics: dict[str, Any] = {
            f"learning_rate/{role}": rate for role, rate in self.optimizer.learning_rates.items()
        }
        num_targets = sum(row.num_targets for row in step.rows)
        if not num_targets:  # every sample was skipped: the schedule goes on, the weights stay
            self.optimizer.advance()
            return metrics
        losses = [self.backward(row, num_targets) for row in step.rows]
        with self.memory.row(step.rows[-1], self.step + 1):
            metrics |= {"loss": torch.stack(losses).sum(), "grad_norm": self.optimizer.step()}
        return metrics | {"lost_updates": self.optimizer.lost, "lost_in_a_row": self.optimizer.lost_in_a_row}

    def backward(self, row: PackedRow, num_targets: int) -> Tensor:
        with self.memory.row(row, self.step + 1):
            with self.precision.autocast():
                loss: Tensor = self.model(row.to(self.device)) / num_targets  # over the whole step: no mean of means
            self.optimizer.backward(loss)
        return loss.detach()

    def is_time(self, every: int) -> bool:  # 0 is never; what happens at the end is in `finish`
        return every > 0 and self.step % every == 0 and self.step < self.total_steps

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Training stands still: its time is not counted, and nothing is compiled for what is asked now and then."""
        with self.clock.stopped(), eager(), self.precision.autocast():
            yield

    def validate(self) -> None:
        """The mean loss over the held-out targets; the model that does best on it so far is kept."""
        self.flush()
        with self.asking():
            if not len(self.held_out):  # of a stream, this reads what is held out
                return
        with self.asking(), evaluating(self.model), torch.no_grad():
            total, num_targets, skipped = 0.0, 0, Counter[str]()
            for step in self.load(self.held_out):
                skipped += step.skipped
                total += sum(float(self.model(row.to(self.device))) for row in step.rows)
                num_targets += sum(row.num_targets for row in step.rows)
        self.results["validation_skipped"] = dict(skipped)
        if not num_targets:  # of a few held-out samples all may be broken: no reason to lose a run
            return
        loss = total / num_targets
        self.results["validation_loss"] = loss
        self.trackers.evaluated({"step": self.step, "validation_loss": loss})
        if loss < self.results.get("best_validation_loss", math.inf):
            self.results |= {"best_validation_loss": loss, "best_step": self.step}
            with self.asking():
                self.model.save_pretrained(self.run.best_model)

    def ask_bare_decoder(self) -> None:
        """Before it is trained, for the benchmarks that compare with it; its answers are kept beside the model's."""
        with self.asking():
            for questions in self.benchmarks:
                if items := questions.ask_bare_decoder(self.model):
                    write_items(items, self.run.bare_decoder(questions.name))

    def evaluate(self, questions: Questions, controls: bool = False) -> Evaluation:
        """Score the model as it is now; with its items on disk."""
        self.flush()
        bare = read_items(self.run.bare_decoder(questions.name)) if controls else []
        with self.asking():
            evaluation = questions.evaluate(self.model, controls, self.experiment.data.seed, bare)
        evaluation.write(self.run.evaluation(questions.name, self.step))
        results = {"step": self.step, "benchmark": questions.name, **evaluation.summary()}
        self.trackers.evaluated(results, questions.answered(evaluation.items))
        return evaluation

    def finish(self) -> dict[str, Any]:
        """Save the model, evaluate it for the last time, controls included, and write the summary."""
        self.flush()
        rates = self.clock.rates()
        self.model.save_pretrained(self.run.model)
        self.validate()
        benchmarks = {}
        for questions in self.benchmarks:
            evaluation = self.evaluate(questions, controls=True)
            benchmarks[questions.name] = evaluation.summary()
            draw_gallery(questions.samples, evaluation.items, self.run.evaluation(questions.name, self.step, ".png"))
        summary = {
            "name": self.run.name,
            "seed": self.experiment.seed,
            "steps": self.step,
            **rates,
            "tokens": self.clock.tokens,
            "wall_seconds": self.clock.wall_seconds,
            "lost_updates": int(self.optimizer.lost),
            **self.tally.summary(),
            **self.results,
            "benchmarks": benchmarks,
            "device": str(self.device),
            "precision": self.precision.name,
            "peak_memory_bytes": peak_memory(self.device),
        }
        self.run.write_json(self.run.summary, summary)
        self.trackers.finished(summary)
        return summary

    def load(self, steps: Steps | HeldOut) -> Generator[Step, None, None]:
        return load(steps, self.workers, pin_memory=self.device.type == "cuda", plugin_files=self.plugin_files)

    def started(self) -> None:
        components = {part.where: part.name for part in self.model.blueprint.parts}
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        facts = {"run": str(self.run.folder), "total_steps": self.total_steps, "parameters": parameters, **components}
        how = {"device": str(self.device), "precision": self.precision.name, "workers": self.workers}
        notes = [self.precision.note, attention_note(self.model.language_decoder, self.precision)]
        self.trackers.started(facts | how | {"notes": [note for note in notes if note]})

    def count(self, step: Step) -> None:
        self.tally.add(step, last=self.step + 1 == self.total_steps)
        self.clock.samples += step.num_samples
        self.clock.tokens += step.num_tokens
        if self.clock.peak:
            self.clock.flops += self.cost(tuple(self.optimizer.learning_rates)).of_rows(step.rows)

    def report(self, metrics: dict[str, Any]) -> None:
        """Hand the metrics to the trackers one step late, so that the device is never waited for."""
        self.flush()
        rates = self.clock.step_finished()
        if self.step % self.config.log_every == 0 or self.step == self.total_steps:
            counts = {"skipped": self.tally.skipped.total(), "peak_memory_bytes": peak_memory(self.device)}
            self.trackers.step_finished({"step": self.step, **metrics, **rates, **counts})

    def flush(self) -> None:
        """Tell the trackers what is still untold; DivergedError where one update after the other was lost."""
        metrics = self.trackers.flush()
        if metrics.get("lost_in_a_row", 0) >= MOST_LOST:
            best = self.results.get("best_step")
            kept = f"the best model, of step {best}, is {self.run.best_model}" if best else "no model was kept yet"
            raise DivergedError(
                f"step {metrics['step']}: {metrics['lost_in_a_row']:.0f} updates in a row were lost, because the loss "
                "or its gradient was no finite number; lower training.learning_rate, warm up for longer, or set "
                f"training.max_grad_norm ({kept})"
            )
