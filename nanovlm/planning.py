"""What an experiment will take, worked out on the ``meta`` device: no weights, no data, no GPU."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nanovlm.blueprint import ROLES, Recipe
from nanovlm.data.conversation import Tokens
from nanovlm.data.packing import Example, PackedRow, pack_row
from nanovlm.errors import ConfigError
from nanovlm.experiment import Training
from nanovlm.hub import local_folder
from nanovlm.model import VisionLanguageModel

WEIGHT_BYTES = 4  # fp32
TRAINED_BYTES = 12  # more for a trained weight: its gradient and AdamW's two moments


@dataclass(frozen=True)
class Plan:
    """An experiment's size. FLOPs and memory are for samples of the greatest length, every text token supervised."""

    name: str
    parameters: dict[str, int]
    trained_parameters: int
    image_tokens: int
    longest_sample: int
    flops_per_sample: int
    """Forward and backward; a multiplication and an addition are two."""
    memory_bytes: int
    """Weights, gradients, optimizer state, and what the backward pass of one row needs, all in fp32."""
    downloads: list[str]

    @property
    def total_parameters(self) -> int:
        return sum(self.parameters.values())

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"total_parameters": self.total_parameters}


def plan(recipe: Recipe) -> Plan:
    """Raises ConfigError for whatever cannot work: a projector that the grid does not suit, a sample too long."""
    model = check_lengths(recipe)
    training, data = recipe.experiment.training, recipe.experiment.data
    freeze(model, training)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    parameters = {role: sum(p.numel() for p in getattr(model, role).parameters()) for role in ROLES}
    flops, activations = measure(model, _longest_row(model, data.max_text_tokens))
    length = model.num_image_tokens + data.max_text_tokens
    in_a_row = min(training.samples_per_step, max(1, training.tokens_per_row // length), training.images_per_row)
    memory = sum(parameters.values()) * WEIGHT_BYTES + trained * TRAINED_BYTES + activations * in_a_row
    return Plan(
        recipe.experiment.name, parameters, trained, model.num_image_tokens, length, flops, memory, _downloads(recipe)
    )


def check_lengths(recipe: Recipe) -> VisionLanguageModel:
    """The model on ``meta``; ConfigError if the experiment's longest sample does not fit a row, or the decoder."""
    with torch.device("meta"):
        model = VisionLanguageModel(recipe.blueprint)
    data, row = recipe.experiment.data, recipe.experiment.training.tokens_per_row
    longest = data.max_text_tokens + data.max_images * model.num_image_tokens
    images = f"{data.max_images} x {model.num_image_tokens}"
    words = f"the longest sample takes {data.max_text_tokens} text + {images} image tokens = {longest}"
    fix = "lower data.max_text_tokens or data.max_images"
    if longest > row:
        raise ConfigError(f"training.tokens_per_row={row}: {words}; raise it, or {fix}")
    if longest > model.language_decoder.max_positions:
        limit = model.language_decoder.max_positions
        raise ConfigError(f"language_decoder: takes at most {limit} tokens, but {words}; {fix}")
    return model


def freeze(model: VisionLanguageModel, training: Training) -> None:
    """A component whose learning rate is 0 is not trained."""
    for role in ROLES:
        getattr(model, role).requires_grad_(getattr(training.learning_rate, role) > 0)


def measure(model: VisionLanguageModel, row: PackedRow) -> tuple[int, int]:
    """FLOPs of a forward and backward pass, and the bytes that the forward pass keeps for the backward one."""
    kept: dict[int, Tensor] = {}
    own = {id(parameter.untyped_storage()) for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter) and id(storage) not in own:
            kept[storage._cdata] = tensor
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(row)
        if loss.requires_grad:
            loss.backward()
    return counter.get_total_flops(), sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _longest_row(model: VisionLanguageModel, text_tokens: int) -> PackedRow:
    """One sample with one picture, on ``meta``."""
    size = model.vision_encoder.image.size
    pixels = torch.empty(1, 3, size, size, dtype=torch.uint8)
    tokens = Tokens([0] * text_tokens, [True] * text_tokens, [0])
    return pack_row([Example(tokens, pixels)], model.num_image_tokens).to("meta")


def _downloads(recipe: Recipe) -> list[str]:
    """What the experiment names that is not on this machine: hub ids, each with where it is named."""
    named = [
        (f"{part.where}.{option}", getattr(part.config, option, ""))
        for part in recipe.parts
        for option in ("weights", "tokenizer", "source")
    ]
    here = ("", "random", "bytes", "tiny")
    return [f"{where}: {source}" for where, source in named if source not in here and local_folder(source) is None]
