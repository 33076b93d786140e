"""The training loop, told as a story; every detail is one call down."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanovlm.blueprint import ROLES
from nanovlm.data.loader import HeldOut, Step, Steps
from nanovlm.data.origins import given
from nanovlm.data.packing import PackedRow
from nanovlm.data.tally import Tally
from nanovlm.data.workers import load, num_workers
from nanovlm.errors import CheckpointError, DivergedError
from nanovlm.evaluation.evaluator import Questions
from nanovlm.experiment import Experiment
from nanovlm.flops import Cost, Work, peak_flops
from nanovlm.model import VisionLanguageModel
from nanovlm.seeding import derived_seed
from nanovlm.training.blocks import eager, prepare_blocks
from nanovlm.training.checkpoint import REMEDIES, Checkpoints, Snapshot
from nanovlm.training.clock import Clock
from nanovlm.training.distributed import Group
from nanovlm.training.evaluations import Evaluations, is_time
from nanovlm.training.interrupts import Halt, Interrupts, Stopped
from nanovlm.training.memory import MemoryWatch, peak_memory
from nanovlm.training.optimizer import Optimizer
from nanovlm.training.precision import Precision, attention_note
from nanovlm.training.run import Run
from nanovlm.training.state import restore, snapshot
from nanovlm.training.torchrun import processes_here
from nanovlm.training.trackers import PRIVATE, Trackers

MOST_LOST = 10  # updates in a row
TOLD_TO_END = f"{PRIVATE}told_to_end"  # how many ranks were
CostOf = Callable[[tuple[str, ...]], Cost]  # by the components that are trained


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
    cost: CostOf
    plugin_files: Sequence[str] = ()
    resumed: Snapshot | None = None
    checkpoints: Checkpoints | None = None
    notes: Sequence[str] = ()
    group: Group | None = None


class Trainer:
    def __init__(self, parts: Parts) -> None:
        self.model, self.trackers, self.run, self.cost = parts.model, parts.trackers, parts.run, parts.cost
        self.experiment, self.config = parts.experiment, parts.experiment.training
        self.device = self.model.device
        self.group = parts.group or Group(self.device)
        self.alone = self.group.ranks.world == 1
        self.precision = Precision(self.config.precision, self.device)
        self.total_steps = len(parts.steps)
        self.optimizer = Optimizer(self.model, self.config, self.total_steps, self.precision)
        prepare_blocks(self.model, self.config)
        self.workers, self.plugin_files = num_workers(parts.experiment.data.workers), parts.plugin_files
        self.step, self.position, self.steps = 0, None, self.load(parts.steps)
        self.clock = Clock(peak_flops(self.device, self.precision.name), self.group.ranks.world)
        self.memory, self.tally = MemoryWatch(), Tally()
        self.evaluations = Evaluations(parts, self.group, self.asking, self.load)
        self.interrupts = Interrupts()
        keep_last = parts.experiment.checkpoints.keep_last
        self.checkpoints = parts.checkpoints or Checkpoints(self.run.checkpoints, keep_last)
        self.notes, self.told_to_end = parts.notes, False
        self.given: dict[str, Any] = {f"given/data.train.{d}": 0.0 for d in range(len(self.experiment.data.train))}
        if parts.resumed:
            restore(self, parts.resumed)

    def train(self) -> dict[str, Any]:
        try:
            with self.interrupts:
                return self.run_through()
        except Halt:
            stopped = self.stop()
            self.trackers.failed(stopped)
            raise stopped from None
        except BaseException as error:
            self.trackers.failed(error)
            self.checkpoints.wait()
            if isinstance(error, OSError) and error.errno in REMEDIES:  # a full disk
                raise CheckpointError(self.checkpoints.failure("the run's files", error)) from error
            raise
        finally:
            self.steps.close()  # a stream is still being read

    def run_through(self) -> dict[str, Any]:
        self.started()
        if not self.step:
            self.evaluations.ask_bare_decoder()
        while self.step < self.total_steps:
            self.evaluations.due(self.step)
            metrics = self.train_step()
            self.step += 1
            self.report(metrics)
            self.keep()
        return self.finish()

    def keep(self) -> None:
        """Write a checkpoint, if one is due; what is to be asked after this step is not known to it yet."""
        every = self.experiment.checkpoints.every
        if is_time(every, self.step) or (every and self.step == self.total_steps):
            self.write_checkpoint()
        if self.told_to_end or (self.alone and self.interrupts.requested):  # ranks end together, once all know of it
            raise Halt

    def write_checkpoint(self) -> None:
        self.flush()  # what was told up to here belongs to it
        self.checkpoints.wait()  # two states at once may be too much for the host's memory
        if (state := snapshot(self)) is not None:
            self.checkpoints.write(state)

    def stop(self) -> Stopped:
        """Leave a checkpoint, where there is none of this step yet."""
        if not self.group.broadcast(self.checkpoints.last == self.step):
            self.write_checkpoint()
        self.checkpoints.wait()
        start = "" if self.alone else f"torchrun --nproc-per-node {processes_here()} -m "
        command = f"{start}{self.run.resume_command}"
        return Stopped(f"stopped after step {self.step} of {self.total_steps}; go on with {command}")

    def train_step(self) -> dict[str, Any]:
        self.group.doing = f"step {self.step + 1}"
        torch.manual_seed(derived_seed(self.experiment.seed, "step", self.step, self.group.ranks.rank))  # for dropout
        for role in ROLES:  # a frozen component keeps still: no dropout
            getattr(self.model, role).train(self.optimizer.trains(role))
        with self.clock.waiting():
            step = next(self.steps)  # one step's samples, in one or a few packed rows
        self.count(step)
        self.position = step.position
        metrics: dict[str, Any] = {
            f"learning_rate/{role}": rate for role, rate in self.optimizer.learning_rates.items()
        }
        num_targets = sum(row.num_targets for row in step.rows)
        if not num_targets and self.alone:  # all skipped: the schedule goes on, the weights stay
            self.optimizer.advance()
            return metrics
        losses = [torch.zeros((), device=self.device), *(self.backward(row, num_targets) for row in step.rows)]
        told = {TOLD_TO_END: float(bool(self.interrupts.requested))} | given(step, self.given)
        with self.memory.row(step.rows[-1], self.step + 1) if step.rows else nullcontext():
            totals = self.group.sum_gradients(self.optimizer.trained, torch.stack(losses).sum(), num_targets, told)
            metrics |= {"loss": totals.loss, "grad_norm": self.optimizer.step(totals.num_targets)}
        metrics |= {"lost_updates": self.optimizer.lost, "lost_in_a_row": self.optimizer.lost_in_a_row}
        self.given = {name: count + totals.counts[name] for name, count in self.given.items()}
        return metrics | totals.counts | self.given

    def backward(self, row: PackedRow, num_targets: int) -> Tensor:
        with self.memory.row(row, self.step + 1):
            with self.precision.autocast():
                loss: Tensor = self.model(row.to(self.device)) / num_targets  # over the whole step: no mean of means
            self.optimizer.backward(loss)
        return loss.detach()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Training stands still: its time is not counted, and nothing is compiled for what is asked now and then."""
        self.flush()
        with self.interrupts.welcome(self.alone), self.clock.stopped(), eager(), self.precision.autocast():
            yield

    def finish(self) -> dict[str, Any]:
        """Save the model, evaluate it for the last time, controls included, and write the summary."""
        self.flush()  # the device may still be at the last step
        rates, done = self.clock.rates(), self.group.gather(self.clock.totals())
        if self.group.is_main:
            self.model.save_pretrained(self.run.model)
        benchmarks = self.evaluations.final(self.step)
        tally = Tally.together(self.group.gather(self.tally.state()))
        summary = {
            "name": self.run.name,
            "seed": self.experiment.seed,
            "steps": self.step,
            **rates,
            "samples": sum(totals.samples for totals in done),
            "tokens": sum(totals.work.tokens for totals in done),
            "work": Work.together(totals.work for totals in done)._asdict(),
            "wall_seconds": self.clock.wall_seconds,
            "lost_updates": int(self.optimizer.lost),
            **tally.summary(),
            **self.evaluations.results,
            "benchmarks": benchmarks,
            "device": str(self.device),
            "precision": self.precision.name,
            "ranks": self.group.ranks.world,
            "peak_memory_bytes": peak_memory(self.device),
        }
        self.checkpoints.wait()
        if self.group.is_main:
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
        how |= {"ranks": self.group.ranks.world, "done_steps": self.step}
        notes = [*self.notes, self.precision.note, attention_note(self.model.language_decoder, self.precision)]
        self.trackers.started(facts | how | {"notes": [note for note in notes if note]})

    def count(self, step: Step) -> None:
        self.tally.add(step, last=self.step + 1 == self.total_steps, alone=self.alone)
        self.clock.samples += step.num_samples
        self.clock.work = Work.together((self.clock.work, Work.of(step.rows)))
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
        self.told_to_end = self.told_to_end or metrics.get(TOLD_TO_END, 0) > 0
        if metrics.get("lost_in_a_row", 0) >= MOST_LOST:
            best = self.evaluations.results.get("best_step")
            kept = f"the best model, of step {best}, is {self.run.best_model}" if best else "no model was kept yet"
            raise DivergedError(
                f"step {metrics['step']}: {metrics['lost_in_a_row']:.0f} updates in a row were lost, because the loss "
                "or its gradient was no finite number; lower training.learning_rate, warm up for longer, or set "
                f"training.max_grad_norm ({kept})"
            )
