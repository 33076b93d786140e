"""Models and experiments that are built in milliseconds."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from nanovlm import Experiment, Turn, VisionLanguageModel, load_experiment, load_plugins
from nanovlm.blueprint import Blueprint, Recipe
from nanovlm.data.packing import Example
from nanovlm.experiment import Named

QUICKSTART = Path(__file__).parents[1] / "experiments" / "quickstart.yaml"

SIZES = (
    "vision_encoder.image_size=16",
    "vision_encoder.patch_size=4",
    "vision_encoder.hidden_size=16",
    "vision_encoder.intermediate_size=32",
    "vision_encoder.num_hidden_layers=2",
    "vision_encoder.num_attention_heads=2",
    "language_decoder.hidden_size=24",
    "language_decoder.intermediate_size=48",
    "language_decoder.num_hidden_layers=2",
    "language_decoder.num_attention_heads=4",
    "language_decoder.num_key_value_heads=2",
    "data.train.0.train_size=64",
    "data.train.0.image_size=16",
    "data.validation.share=0",
    "data.workers=0",
    "benchmarks.0.test_size=8",
    "benchmarks.0.image_size=16",
    "training.steps=3",
    "training.samples_per_step=8",
    "training.tokens_per_row=1024",
    "training.learning_rate.projector=2e-3",
    "training.learning_rate.vision_encoder=2e-3",
    "training.learning_rate.language_decoder=2e-3",
    "training.betas=[0.9, 0.999]",
    "device=cpu",
    "trackers=[]",
)


def tiny_experiment(*overrides: str) -> Experiment:
    """The quickstart with a 16-pixel encoder, 4 image tokens, 64 samples and 3 steps; then ``overrides``."""
    return load_experiment(QUICKSTART, [*_not_about(overrides, SIZES), *overrides])


def _not_about(overrides: tuple[str, ...], sizes: tuple[str, ...]) -> list[str]:
    """The sizes that ``overrides`` neither set nor replace (another budget, another component, a whole list)."""
    keys = [text.partition("=")[0] for text in overrides]
    renamed = [key.removesuffix("name") for key in keys if key.endswith(".name")]
    replaced = [f"{key}." for key in keys]
    budget = any(key in ("training.samples", "training.epochs", "training.flops") for key in keys)

    def stands(size: str) -> bool:
        key = size.partition("=")[0]
        gone = key in keys or key.startswith((*renamed, *replaced)) or (budget and key == "training.steps")
        return not gone

    return [size for size in sizes if stands(size)]


@cache
def _registries() -> Any:
    return load_plugins()


def tiny_recipe(*overrides: str) -> Recipe:
    return Recipe.of(tiny_experiment(*overrides), _registries())


def tiny_model(*overrides: str, seed: int = 0) -> VisionLanguageModel:
    return VisionLanguageModel(tiny_recipe(*overrides).blueprint, seed).eval()


def model_of(vision_encoder: dict[str, Any], language_decoder: dict[str, Any], seed: int = 0) -> VisionLanguageModel:
    """A model from these options alone, with pixel shuffle between them; not yet with its pretrained weights."""
    options = {
        "vision_encoder": vision_encoder,
        "projector": {"name": "pixel_shuffle"},
        "language_decoder": language_decoder,
    }
    choices = {role: Named.model_validate(option) for role, option in options.items()}
    return VisionLanguageModel(Blueprint.of(choices, _registries()), seed).eval()


def random_pixels(count: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    """(count, 3, size, size) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def example(model: VisionLanguageModel, turns: list[Turn], num_images: int = 0, seed: int = 0) -> Example:
    """A conversation with random pictures, ready to be packed."""
    pixels = random_pixels(num_images, model.vision_encoder.image.size, seed)
    return Example(model.text.conversation(turns, num_images), pixels)
