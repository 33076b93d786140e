"""How fast an experiment trains: whole steps against the clock, and then a few of them piece by piece."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch

from nanovlm.bench.setup import build_trainer, with_steps
from nanovlm.bench.split import PIECES, DividedTrainer
from nanovlm.blueprint import Recipe
from nanovlm.flops import peak_flops
from nanovlm.hardware import measured_peak, synchronise
from nanovlm.seeding import seeded
from nanovlm.training.blocks import compiles
from nanovlm.training.clock import Clock, Totals
from nanovlm.training.memory import peak_memory
from nanovlm.training.precision import choose_device

WARM_UP = 3  # steps that are not counted: memory is asked for, kernels are chosen
WARM_UP_COMPILED = 8  # and graphs compiled, of which there are a few
DIVIDED = 5  # steps that are taken piece by piece, at most


def measure_step(recipe: Recipe, steps: int, synthetic: bool) -> dict[str, Any]:
    """``steps`` steps after a warm-up; what they did, and how long they waited for data, is the trainer's own count."""
    compiled = compiles(recipe.experiment.training, choose_device(recipe.experiment.device))
    warm_up, divided = WARM_UP_COMPILED if compiled else WARM_UP, min(DIVIDED, steps)
    with seeded(recipe.experiment.seed, "training"):
        trainer = build_trainer(with_steps(recipe, warm_up + steps + divided), synthetic)
        try:
            peak, origin = find_peak(trainer)
            totals = take_steps(trainer, warm_up, steps, peak)
            memory = peak_memory(trainer.device)
            split = split_steps(trainer, divided)
        finally:
            trainer.steps.close()  # a stream is still being read
    return {
        "precision": trainer.precision.name,
        "compiled": compiled,
        "workers": 0 if synthetic else trainer.workers,
        "samples_per_step": recipe.experiment.training.samples_per_step,
        "warm_up_steps": warm_up,
        "steps": steps,
        **rates(totals, peak),
        "peak_flops_per_second": peak,
        "peak_origin": origin,
        "peak_memory_bytes": memory,
        "split": split,
    }


def find_peak(trainer: DividedTrainer) -> tuple[float, str]:
    """FLOPs a second that the device can do, and how that is known."""
    if known := peak_flops(trainer.device, trainer.precision.name):
        return known, "the GPU's data sheet"
    measured = measured_peak(trainer.device, trainer.precision.dtype)
    return measured, f"a large {trainer.precision.name} matrix multiplication, measured"


def take_steps(trainer: DividedTrainer, warm_up: int, steps: int, peak: float) -> Totals:
    """The trainer's totals of ``steps`` steps, without those of the warm-up."""
    trainer.clock = Clock(peak)  # with the peak it counts FLOPs, and works out in the warm-up what a row costs
    advance(trainer, warm_up)
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.device)
    trainer.clock = Clock(peak)
    advance(trainer, steps)
    return trainer.clock.totals()


def advance(trainer: DividedTrainer, steps: int) -> None:
    for _ in range(steps):
        trainer.train_step()
        trainer.step += 1
    synchronise(trainer.device)


def rates(totals: Totals, peak: float) -> dict[str, float]:
    """Filling does not count as tokens, nor what is computed twice as FLOPs."""
    seconds = totals.seconds
    return {
        "seconds": seconds,
        "samples": totals.samples,
        "tokens": totals.work.tokens,
        "samples_per_second": totals.samples / seconds,
        "tokens_per_second": totals.work.tokens / seconds,
        "data_wait": totals.waited / seconds,
        "flops_per_second": totals.flops / seconds,
        "mfu": totals.flops / seconds / peak,
    }


def split_steps(trainer: DividedTrainer, steps: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each piece, the median of so many steps, and its share of all pieces."""
    trainer.clock = Clock()
    taken = [trainer.divided_step() for _ in range(steps)]
    seconds = {piece: median(step[piece] for step in taken) for piece in PIECES}
    together = sum(seconds.values())
    return {piece: {"ms": 1000 * spent, "share": spent / together} for piece, spent in seconds.items()}
