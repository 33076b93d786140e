"""A forward and backward pass of ours against one of nanoVLM's v0.1, from the user's own checkout of it.

Both models have the same size and see the same pictures and token ids, in turns, in one process. Each lays them out in
its own way: ours end to end in a row; v0.1 puts the picture first and pads each text on its left to the limit.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from nanovlm.bench.setup import build_model
from nanovlm.bench.synthetic import draw_examples
from nanovlm.blueprint import Recipe
from nanovlm.data.packing import IGNORED, Example, PackedRow
from nanovlm.errors import ConfigError, named
from nanovlm.hardware import synchronise
from nanovlm.interop.upstream import DECODER, ENCODER, PROJECTOR
from nanovlm.model import VisionLanguageModel
from nanovlm.seeding import seeded
from nanovlm.training.blocks import compiles, prepare_blocks
from nanovlm.training.launch import choose_packing
from nanovlm.training.precision import Precision

PACKAGE = "models"  # of the checkout
CLONE = "git clone --branch v0.1 https://github.com/huggingface/nanoVLM"
WARM_UP = 2


@dataclass(frozen=True)
class Batch:
    """The same samples as v0.1 lays them out: pixels (B, 3, H, W) in [0, 1], ids and targets (B, most text tokens)."""

    pixels: Tensor
    token_ids: Tensor
    targets: Tensor

    @classmethod
    def of(cls, examples: Sequence[Example], text_tokens: int, device: torch.device) -> Batch:
        ids = torch.zeros(len(examples), text_tokens, dtype=torch.int64)
        targets = torch.full_like(ids, IGNORED)
        for i, example in enumerate(examples):
            tokens = example.tokens
            start = text_tokens - len(tokens.ids)
            ids[i, start:] = torch.tensor(tokens.ids)
            taught = [token if said else IGNORED for token, said in zip(tokens.ids, tokens.supervised, strict=True)]
            targets[i, start:-1] = torch.tensor(taught[1:], dtype=torch.int64)
        pixels = torch.cat([example.pixels for example in examples]) / 255
        return cls(pixels.to(device), ids.to(device), targets.to(device))


def compare(recipe: Recipe, folder: Path, samples: int, repeats: int) -> dict[str, Any]:
    """Medians of so many passes each. Raises ConfigError where ``folder`` is no such checkout, or the sizes differ."""
    limit, config = recipe.experiment.data.max_text_tokens, recipe.experiment.training
    ours = build_model(recipe)
    with imported(folder) as package, seeded(recipe.experiment.seed, "upstream"):
        theirs = build_theirs(package, ours, limit).to(ours.device)
    check_sizes(ours, theirs)
    examples = list(islice(draw_examples(ours, limit, recipe.experiment.seed, "upstream"), samples))
    precision, compiled = Precision(config.precision, ours.device), compiles(config, ours.device)
    rows = [row.to(ours.device) for row in choose_packing(recipe, ours).rows(examples)]
    batch = Batch.of(examples, limit, ours.device)
    ours.train_only(config.trained_roles)
    prepare_blocks(ours, config)
    fast = torch.compile(theirs) if compiled else theirs
    passes = [lambda: pass_ours(ours, rows, precision), lambda: pass_theirs(fast, batch, precision)]
    ours_seconds, theirs_seconds = take_turns(passes, [ours, theirs], repeats)
    ratios = [mine / other for mine, other in zip(ours_seconds, theirs_seconds, strict=True)]
    return {
        "precision": precision.name,
        "compiled": compiled,
        "parameters": sum(parameter.numel() for parameter in ours.parameters()),
        "samples": samples,
        "tokens": sum(row.num_tokens for row in rows),
        "upstream_tokens": samples * (limit + ours.num_image_tokens),
        "repeats": repeats,
        "ours_seconds": median(ours_seconds),
        "upstream_seconds": median(theirs_seconds),
        "ratio": median(ratios),
        "ratios": ratios,
    }


def pass_ours(model: VisionLanguageModel, rows: Sequence[PackedRow], precision: Precision) -> None:
    num_targets = sum(row.num_targets for row in rows)
    for row in rows:
        with precision.autocast():
            loss = model(row) / num_targets
        loss.backward()


def pass_theirs(model: Any, batch: Batch, precision: Precision) -> None:
    """Without an attention mask: v0.1's attention is causal already, and takes only one of the two."""
    with precision.autocast():
        _, loss = model(batch.token_ids, batch.pixels, attention_mask=None, targets=batch.targets)
    loss.backward()


def take_turns(passes: Sequence[Callable[[], None]], models: Sequence[nn.Module], repeats: int) -> list[list[float]]:
    """Seconds of each pass, after a warm-up. Taking turns, both see the machine in the same moods."""
    device = next(models[0].parameters()).device
    seconds: list[list[float]] = [[] for _ in passes]
    for turn in range(WARM_UP + repeats):
        for taken, each, model in zip(seconds, passes, models, strict=True):
            model.train()
            synchronise(device)
            start = time.perf_counter()
            each()
            synchronise(device)
            if turn >= WARM_UP:
                taken.append(time.perf_counter() - start)
            model.zero_grad()  # one model's gradients at a time
    return seconds


@contextmanager
def imported(folder: Path) -> Iterator[Any]:
    """The checkout's module with the model, and nothing of it left to be imported by mistake afterwards."""
    if not (folder / PACKAGE / "vision_language_model.py").is_file():
        raise ConfigError(
            f"--against {folder}: holds no {PACKAGE}/vision_language_model.py; "
            f"name a checkout of nanoVLM v0.1 ({CLONE})"
        )
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == PACKAGE}
    for name in before:
        del sys.modules[name]
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield importlib.import_module(f"{PACKAGE}.vision_language_model")
    except ImportError as error:
        raise ConfigError(f"--against {folder}: cannot be imported: {named(error)}") from error
    finally:
        sys.path.remove(str(folder.resolve()))
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
        sys.modules |= before


def build_theirs(package: Any, ours: VisionLanguageModel, text_tokens: int) -> nn.Module:
    """v0.1's model of our model's size, with random weights."""
    parts, options = ours.blueprint.parts, {}
    for part, names in zip(parts, (ENCODER, PROJECTOR, DECODER), strict=True):
        for ours_name, their_name in names.items():
            if not hasattr(part.config, ours_name):
                raise ConfigError(f"--against: {part.where} {part.name} has no {ours_name}, so v0.1 has no such model")
            options[their_name] = getattr(part.config, ours_name)
    try:
        config = package.VLMConfig(**options, lm_max_length=text_tokens)
        model: nn.Module = package.VisionLanguageModel(config, load_backbone=False)
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"--against: this is not nanoVLM v0.1 ({named(error)}); {CLONE}") from error
    return model


def check_sizes(ours: nn.Module, theirs: nn.Module) -> None:
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (ours, theirs)]
    if counts[0] != counts[1]:
        raise ConfigError(
            f"--against: ours has {counts[0]:,} parameters, theirs {counts[1]:,}: these are not the same model; "
            "use experiments/baseline.yaml, which is v0.1's"
        )
