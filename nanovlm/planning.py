"""What an experiment will take, worked out on the ``meta`` device: no weights, no data, no GPU."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from nanovlm.blueprint import ROLES, Recipe
from nanovlm.data.conversation import Tokens
from nanovlm.data.packing import Example, PackedRow, pack_row
from nanovlm.errors import ConfigError
from nanovlm.flops import count_flops
from nanovlm.merging import BUDGETS
from nanovlm.model import VisionLanguageModel
from nanovlm.training.precision import DTYPES

WEIGHT_BYTES = 4  # fp32
TRAINED_BYTES = 12  # more for a trained weight: its gradient and AdamW's two moments


@dataclass(frozen=True)
class Download:
    """A hub id that an experiment names, and where it does so."""

    where: str
    source: str
    bytes: int | None
    """At most so many; None where nobody knows."""

    @property
    def size(self) -> str:
        if self.bytes is None:
            return "size unknown"
        return f"up to {self.bytes / 1e9:,.0f} GB" if self.bytes >= 1e9 else f"up to {self.bytes / 1e6:,.0f} MB"


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
    precision: str
    """What ``memory_bytes`` is for: the experiment's precision; for `auto` bf16, what it is on most GPUs."""
    memory_bytes: int
    """Weights, gradients, optimizer state, and what the backward pass of one full row needs."""
    downloads: list[Download]

    @property
    def total_parameters(self) -> int:
        return sum(self.parameters.values())

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"total_parameters": self.total_parameters}


def plan(recipe: Recipe) -> Plan:
    """Raises ConfigError for whatever cannot work: a projector that the grid does not suit, a sample too long, ..."""
    check_streams(recipe)
    check_adapters(recipe)
    model = check_lengths(recipe)
    training, data = recipe.experiment.training, recipe.experiment.data
    model.train_only(training.trained_roles)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if not trained:
        raise ConfigError("training.learning_rate: every component is frozen, so there is nothing to train")
    parameters = {role: sum(p.numel() for p in getattr(model, role).parameters()) for role in ROLES}
    length = model.num_image_tokens + data.max_text_tokens
    in_a_row = min(training.samples_per_step, max(1, training.tokens_per_row // length), training.images_per_row)
    precision = "bf16" if training.precision == "auto" else training.precision
    flops = count_flops(model, _longest_row(model, data.max_text_tokens, 1))
    kept = kept_bytes(model, _longest_row(model, data.max_text_tokens, in_a_row), precision)
    return Plan(
        name=recipe.experiment.name,
        parameters=parameters,
        trained_parameters=trained,
        image_tokens=model.num_image_tokens,
        longest_sample=length,
        flops_per_sample=flops,
        precision=precision,
        memory_bytes=sum(parameters.values()) * WEIGHT_BYTES + trained * TRAINED_BYTES + kept,
        downloads=_downloads(recipe),
    )


def check_lengths(recipe: Recipe) -> VisionLanguageModel:
    """The model on ``meta``, its projector tried; ConfigError if the longest sample fits no row, or not the decoder."""
    with torch.device("meta"):
        model = VisionLanguageModel(recipe.blueprint)
        grid = model.vision_encoder.grid
        model.project(torch.empty(1, grid.height * grid.width, grid.dim))
    data, row = recipe.experiment.data, recipe.experiment.training.tokens_per_row
    longest = data.longest_sample(model.num_image_tokens)
    images = f"{data.max_images} x {model.num_image_tokens}"
    words = f"the longest sample takes {data.max_text_tokens} text + {images} image tokens = {longest}"
    fix = "lower data.max_text_tokens or data.max_images"
    if longest > row:
        raise ConfigError(f"training.tokens_per_row={row}: {words}; raise it, or {fix}")
    if longest > model.language_decoder.max_positions:
        limit = model.language_decoder.max_positions
        raise ConfigError(f"language_decoder: takes at most {limit} tokens, but {words}; {fix}")
    return model


def check_adapters(recipe: Recipe) -> None:
    """A ConfigError for adapters (LoRA) that would never be trained."""
    decoder = recipe.blueprint.language_decoder.config
    if getattr(decoder, "lora", None) and not recipe.experiment.training.learning_rate.language_decoder:
        raise ConfigError(
            "training.learning_rate.language_decoder=0: the decoder's adapters would never be trained; "
            "set the adapters' learning rate here, for example 1e-4, or leave language_decoder.lora out"
        )


def check_streams(recipe: Recipe) -> None:
    """``check_stream`` for each dataset that is one as its class says, or its option ``streaming``."""
    for d, part in enumerate(recipe.datasets):
        if getattr(part.cls, "streaming", False) or getattr(part.config, "streaming", False):
            check_stream(recipe, d)


def check_stream(recipe: Recipe, d: int) -> None:
    """A ConfigError for what cannot be had of a dataset without a length."""
    what, data = f"{recipe.datasets[d].name} is a stream and has no length", recipe.experiment.data
    if len(recipe.datasets) > 1:
        raise ConfigError(
            f"data.train.{d}: {what}, so it cannot be mixed with others; let it stand alone, or do not stream it"
        )
    if (weight := data.train[d].weight) != 1:
        raise ConfigError(f"data.train.{d}.weight={weight}: {what}, so nothing is there to weigh; leave the weight out")
    if epochs := recipe.experiment.training.epochs:
        others = " or ".join(f"training.{budget}" for budget in BUDGETS if budget != "epochs")
        raise ConfigError(f"training.epochs={epochs:g}: {what}; set {others} instead")
    if data.validation.share == 1:
        raise ConfigError("data.validation.share=1: all of the stream is held out for validation; lower it")
    if data.validation.share and not data.validation.limit:
        raise ConfigError(
            f"data.validation.limit=0: {what}, so all of its held-out samples cannot be awaited; "
            "set a limit, or data.validation.share=0"
        )


def kept_bytes(model: VisionLanguageModel, row: PackedRow, precision: str = "fp32") -> int:
    """Bytes that the forward pass keeps for the backward one.

    Measured with fake tensors: like those on ``meta`` they have a shape and no content, but autocast and attention
    treat them as real ones. The model is used up by it.
    """
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = tensor
        return tensor

    autocast = torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32")
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fill_with_fakes(model)
        own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(row)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _fill_with_fakes(model: VisionLanguageModel) -> None:
    fakes: dict[int, Tensor] = {}  # one for each tensor, however many names it has
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
                    tensors[name] = fakes.setdefault(id(tensor), fake)  # type: ignore[assignment]


def _longest_row(model: VisionLanguageModel, text_tokens: int, samples: int) -> PackedRow:
    """Samples of the greatest length with one picture each."""
    size = model.vision_encoder.image.size
    pixels = torch.empty(1, 3, size, size, dtype=torch.uint8)
    tokens = Tokens([0] * text_tokens, [True] * text_tokens, [0])
    return pack_row([Example(tokens, pixels)] * samples, model.num_image_tokens)


def _downloads(recipe: Recipe) -> list[Download]:
    """What the experiment names that is not on this machine."""
    named = [
        (part, option, getattr(part.config, option, ""))
        for part in recipe.parts
        for option in ("weights", "tokenizer", "source")
    ]
    return [
        Download(f"{part.where}.{option}", source, part.config.known_sizes.get(source))
        for part, option, source in named
        if isinstance(source, str) and not _is_here(source)
    ]


def _is_here(source: str) -> bool:
    return source in ("", "random", "bytes", "tiny") or Path(source).expanduser().exists()
