"""What memory a step takes, by the number of samples in one row: up to the largest that fits, and not beyond it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from nanovlm.bench.setup import build_trainer, with_steps, with_training
from nanovlm.bench.split import DividedTrainer
from nanovlm.bench.synthetic import draw_step
from nanovlm.blueprint import Recipe
from nanovlm.data.loader import Step
from nanovlm.data.packing import PackedRow
from nanovlm.errors import ConfigError
from nanovlm.hardware import available_memory
from nanovlm.seeding import seeded
from nanovlm.training.launch import choose_packing
from nanovlm.training.memory import OutOfMemoryError, peak_memory

ENDLESS = 2**16  # steps that nobody takes; a learning rate's schedule needs their number
MARGIN = 0.95  # of the memory: what is predicted is no promise


@dataclass(frozen=True)
class Fitted:
    """A step that fitted: its samples in one row, and the bounds of a row that hold them."""

    samples: int
    tokens_per_row: int
    images_per_row: int
    peak_memory_bytes: int


def measure_memory(recipe: Recipe, most: int) -> dict[str, Any]:
    """Rows of 1, 2, 4, ... synthetic samples, at most ``most`` (0: as many as fit)."""
    with seeded(recipe.experiment.seed, "training"):
        trainer = build_trainer(with_steps(with_training(recipe, samples_per_step=1), ENDLESS), synthetic=True)
        limit = available_memory(trainer.device)
        if limit is None and not most:
            raise ConfigError(
                "--memory: how much memory this machine has to spare cannot be told; say where to stop with --most N"
            )
        fitted: list[Fitted] = []
        reason = ""
        try:
            for samples in sizes(most):
                if limit and (expected := predicted(fitted)) > MARGIN * limit:
                    reason = f"{samples} samples would take about {expected / 2**30:,.1f} GiB"
                    break
                fitted.append(take_step(trainer, recipe, samples))
        except OutOfMemoryError:
            reason = f"{samples} samples did not fit"
    return describe(trainer, fitted, limit, reason or f"--most {most}")


def sizes(most: int) -> Iterator[int]:
    samples = 1
    while not most or samples <= most:
        yield samples
        samples *= 2


def predicted(fitted: list[Fitted]) -> float:
    """Memory grows in a straight line: the next size adds twice what the last doubling did."""
    if len(fitted) < 2:
        return 0.0
    before, last = (fit.peak_memory_bytes for fit in fitted[-2:])
    return last + 2 * (last - before)


def take_step(trainer: DividedTrainer, recipe: Recipe, samples: int) -> Fitted:
    """The peak of a step of one row; the step before it, of the same size, is where graphs are compiled."""
    row = one_row(trainer, recipe, samples)
    trainer.steps = _given([Step([row])] * 2)
    torch.compiler.reset()  # or so many lengths of rows would end in code that is not compiled
    for _ in range(2):
        if trainer.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.device)
        trainer.train_step()
    return Fitted(samples, len(row.token_ids), row.num_images, peak_memory(trainer.device))


def one_row(trainer: DividedTrainer, recipe: Recipe, samples: int) -> PackedRow:
    """With the bounds of a row lifted so far that it holds them all."""
    data, model = recipe.experiment.data, trainer.model
    tokens = samples * (data.max_text_tokens + data.max_images * model.num_image_tokens)
    lifted = with_training(recipe, samples_per_step=samples, tokens_per_row=tokens, images_per_row=samples)
    (row,) = draw_step(model, choose_packing(lifted, model), data.max_text_tokens, samples, recipe.experiment.seed).rows
    return row


def _given(steps: Iterable[Step]) -> Any:
    """In the place of what a loader reads."""
    yield from steps


def describe(trainer: DividedTrainer, fitted: list[Fitted], limit: int | None, reason: str) -> dict[str, Any]:
    if not fitted:
        raise ConfigError(
            "--memory: not even a step of one sample fits; lower data.max_text_tokens, or choose a smaller model"
        )
    return {
        "precision": trainer.precision.name,
        "gradient_checkpointing": trainer.config.gradient_checkpointing,
        "available_bytes": limit,
        "rows": [asdict(fit) for fit in fitted],
        "stopped_by": reason,
        "largest": asdict(fitted[-1]),
    }
