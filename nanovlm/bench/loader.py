"""How fast samples are read, prepared and packed: by one process with one thread, and by the experiment's workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from nanovlm.bench.photographs import Photographs
from nanovlm.bench.setup import build_model, with_steps
from nanovlm.blueprint import Recipe
from nanovlm.data.conversation import TextFormat
from nanovlm.data.loader import Preparation, Steps
from nanovlm.data.mixture import Mixture
from nanovlm.data.tokenizer import byte_tokenizer
from nanovlm.data.workers import load, num_workers
from nanovlm.planning import check_streams
from nanovlm.training.launch import choose_packing, lay_out_steps, open_mixture

WARM_UP = 1  # step that is not counted
AHEAD = 2  # steps that each worker is ahead of who asks: they are ready when the clock starts, and so not counted


def measure_loader(recipe: Recipe, steps: int, synthetic: bool) -> dict[str, Any]:
    """Samples a second that could be used, by one process and by workers."""
    check_streams(recipe)
    workers = num_workers(recipe.experiment.data.workers)
    found: dict[str, Any] = {"samples_per_step": recipe.experiment.training.samples_per_step, "steps": steps}
    with one_thread():
        found["one_process"] = rate(recipe, steps, synthetic, workers=0)
    if workers:
        found["workers"] = workers
        found["with_workers"] = rate(recipe, steps, synthetic, workers)
    return found


def rate(recipe: Recipe, steps: int, synthetic: bool, workers: int) -> dict[str, float]:
    """Of ``steps`` steps, with as many as are read ahead before and after them."""
    warm_up, after = max(WARM_UP, AHEAD * workers), AHEAD * workers
    loader = load(
        open_steps(with_steps(recipe, warm_up + steps + after), synthetic),
        workers,
        plugin_files=recipe.registries.files,
    )
    try:
        for _ in range(warm_up):
            next(loader)
        start = time.perf_counter()
        taken = [next(loader).num_samples for _ in range(steps)]
        seconds = time.perf_counter() - start
    finally:
        loader.close()
    samples_per_second = sum(taken) / seconds
    return {
        "samples": sum(taken),
        "seconds": seconds,
        "samples_per_second": samples_per_second,
        "samples_per_second_per_core": samples_per_second / max(1, workers),
    }


def open_steps(recipe: Recipe, synthetic: bool) -> Steps:
    model = build_model(recipe)
    if not synthetic:
        return lay_out_steps(recipe, model, open_mixture(recipe))[0]
    data, config = recipe.experiment.data, recipe.experiment.training
    photographs = Photographs(config.steps * config.samples_per_step, data.max_text_tokens)
    whole = data.model_copy(update={"validation": data.validation.model_copy(update={"share": 0})})
    mixture = Mixture([photographs], [1.0], whole, recipe.experiment.seed)
    prepare = Preparation(TextFormat(byte_tokenizer(), "question_answer"), model.vision_encoder.image, data)
    samples = config.steps * config.samples_per_step
    return Steps(mixture, prepare, choose_packing(recipe, model), config.samples_per_step, samples)


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
