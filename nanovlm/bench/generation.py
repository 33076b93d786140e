"""How fast a model answers: greedy decoding with a KV cache, for one prompt and for many at once."""

from __future__ import annotations

import time
from itertools import islice
from statistics import median
from typing import Any

from nanovlm.bench.setup import build_model
from nanovlm.bench.synthetic import draw_examples, num_supervised
from nanovlm.blueprint import Recipe
from nanovlm.data.conversation import Tokens
from nanovlm.data.packing import Example, PackedRow, pack_row
from nanovlm.generation import generate_ids
from nanovlm.hardware import synchronise
from nanovlm.model import VisionLanguageModel
from nanovlm.training.precision import Precision

BATCHES = (1, 64)  # prompts that are answered together
NEW_TOKENS = 64
WARM_UP = 1


def measure_generation(recipe: Recipe, repeats: int) -> dict[str, Any]:
    """Random prompts with a picture each, answered to the end: no token stops an answer."""
    model = build_model(recipe)
    precision = Precision(recipe.experiment.training.precision, model.device)
    with precision.autocast():
        batches = [measure_batch(model, prompts(recipe, model, batch), repeats) for batch in BATCHES]
    return {"precision": precision.name, "new_tokens": NEW_TOKENS, "repeats": repeats, "batches": batches}


def prompts(recipe: Recipe, model: VisionLanguageModel, batch: int) -> PackedRow:
    drawn = draw_examples(model, recipe.experiment.data.max_text_tokens, recipe.experiment.seed, "prompts")
    return pack_row([question(example) for example in islice(drawn, batch)], model.num_image_tokens)


def question(example: Example) -> Example:
    """A sample without its answer."""
    length = len(example.tokens.ids) - num_supervised(len(example.tokens.ids))
    return Example(Tokens(example.tokens.ids[:length], [False] * length, example.tokens.image_at), example.pixels)


def measure_batch(model: VisionLanguageModel, row: PackedRow, repeats: int) -> dict[str, float]:
    """Medians: tokens a second in all, and of each prompt's tokens the time of the first one and of each other."""
    first, whole = (median(seconds(model, row, count, repeats)) for count in (1, NEW_TOKENS))
    return {
        "batch": row.num_samples,
        "prompt_tokens": row.num_tokens / row.num_samples,
        "tokens_per_second": row.num_samples * NEW_TOKENS / whole,
        "ms_per_token": 1000 * whole / NEW_TOKENS,
        "first_token_ms": 1000 * first,
        "next_token_ms": 1000 * (whole - first) / (NEW_TOKENS - 1),
    }


def seconds(model: VisionLanguageModel, row: PackedRow, new_tokens: int, repeats: int) -> list[float]:
    taken = []
    for _ in range(WARM_UP + repeats):
        synchronise(model.device)
        start = time.perf_counter()
        generate_ids(model, row, new_tokens, stop_ids=())
        synchronise(model.device)
        taken.append(time.perf_counter() - start)
    return taken[WARM_UP:]
