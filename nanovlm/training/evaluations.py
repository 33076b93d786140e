"""What a run asks its model on the way and at the end: the loss on held-out samples, and the benchmarks' questions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from nanovlm.data.loader import HeldOut, Step
from nanovlm.data.origins import Losses, added, losses_by_sample, mean_by_dataset, write_losses
from nanovlm.evaluation.evaluator import Evaluation, Questions, read_items, write_items
from nanovlm.evaluation.gallery import draw_gallery
from nanovlm.generation import evaluating
from nanovlm.training.distributed import Group

if TYPE_CHECKING:
    from nanovlm.training.trainer import Parts

Asking = Callable[[], AbstractContextManager[None]]


class Evaluations:
    """Evaluating changes nothing of a run but what is known of it, which is ``results``.

    asking: a context in which training stands still. load: prepares the held-out samples in workers.
    """

    def __init__(self, parts: Parts, group: Group, asking: Asking, load: Callable[[HeldOut], Iterable[Step]]) -> None:
        self.model, self.held_out, self.benchmarks = parts.model, parts.held_out, parts.benchmarks
        self.experiment, self.trackers, self.run = parts.experiment, parts.trackers, parts.run
        self.group, self.asking, self.load = group, asking, load
        self.results: dict[str, Any] = {}

    def due(self, step: int) -> None:
        """All that is asked after this step, which is not the last one. A run that goes on from it asks it again."""
        if is_time(self.experiment.data.validation.every, step):
            self.validate(step)
        for questions, choice in zip(self.benchmarks, self.experiment.benchmarks, strict=True):
            if is_time(choice.every, step):
                self.evaluate(questions, step)

    def final(self, step: int) -> dict[str, Any]:
        """All that is asked at the end, controls included; the benchmarks' results by name."""
        self.validate(step)
        found = {}
        for questions in self.benchmarks:
            evaluation = self.evaluate(questions, step, controls=True)
            found[questions.name] = evaluation.summary()
            if self.group.is_main:
                draw_gallery(questions.samples, evaluation.items, self.run.evaluation(questions.name, step, ".png"))
        return found

    def validate(self, step: int) -> None:
        """The mean loss over the held-out targets, by dataset too; the model that does best so far is kept."""
        self.group.doing = f"the validation after step {step}"
        with self.asking():
            if not len(self.held_out):  # of a stream, this reads what is held out
                return
            losses, skipped = self._held_out_losses()
        self.results["validation_skipped"] = dict(skipped)
        num_targets = sum(count for _, count in losses.values())
        if not num_targets:  # of a few held-out samples all may be broken: no reason to lose a run
            return
        loss = sum(total for total, _ in losses.values()) / num_targets
        self.results["validation_loss"] = loss
        if self.group.is_main:
            write_losses(losses, self.run.validation(step))
        by_dataset = mean_by_dataset(losses)
        if len(by_dataset) > 1:
            self.results["validation_loss_by_dataset"] = by_dataset
        several = {f"validation_loss/{name}": value for name, value in by_dataset.items() if len(by_dataset) > 1}
        self.trackers.evaluated({"step": step, "validation_loss": loss, **several})
        if loss < self.results.get("best_validation_loss", math.inf):
            self.results |= {"best_validation_loss": loss, "best_step": step}
            if self.group.is_main:
                with self.asking():
                    self.model.save_pretrained(self.run.best_model)

    def _held_out_losses(self) -> tuple[Losses, Counter[str]]:
        """Of all ranks' held-out samples; and how many were skipped, by reason."""
        losses, skipped = Losses(), Counter[str]()
        with evaluating(self.model), torch.no_grad():
            for held_out in self.load(self.held_out):
                skipped += held_out.skipped
                for row in held_out.rows:
                    losses = added(losses, losses_by_sample(row, self.model.losses(row.to(self.model.device))))
        for rank, (others, left_out) in enumerate(self.group.gather((losses, skipped))):
            losses, skipped = (added(losses, others), skipped + left_out) if rank else (others, left_out)
        return losses, skipped

    def ask_bare_decoder(self) -> None:
        """Before it is trained, for the benchmarks that compare with it; its answers are kept beside the model's."""
        with self.asking():
            for questions in self.benchmarks:
                self.group.doing = f"{questions.name} before the first step"
                if (items := questions.ask_bare_decoder(self.model, self.group.map)) and self.group.is_main:
                    write_items(items, self.run.bare_decoder(questions.name))

    def evaluate(self, questions: Questions, step: int, controls: bool = False) -> Evaluation:
        """Score the model as it is now; with its items on disk."""
        self.group.doing = f"{questions.name} after step {step}"
        bare = self.group.on_main(lambda: read_items(self.run.bare_decoder(questions.name))) if controls else []
        with self.asking():
            evaluation = questions.evaluate(self.model, controls, self.experiment.data.seed, bare, self.group.map)
        if self.group.is_main:
            evaluation.write(self.run.evaluation(questions.name, step))
        results = {"step": step, "benchmark": questions.name, **evaluation.summary()}
        self.trackers.evaluated(results, questions.answered(evaluation.items))
        return evaluation


def is_time(every: int, step: int) -> bool:
    """Whether something that is done ``every`` so many steps (0: never) is due after this one."""
    return every > 0 and step > 0 and step % every == 0
