"""Any vision transformer of the transformers library as a vision encoder: DINOv2 and v3, ViT, DeiT, CLIP, SigLIP, ...

What an encoder gives is found out before it is built, by a trial on the ``meta`` device (shapes only, a few
milliseconds), rather than from a list of families. The trial decides three things:

* **Which outputs are patches.** Tokens that stand before the patches (class, distillation and register tokens) are
  learnt parameters, so they can be counted. An encoder must give either N tokens or N and exactly these; the last N
  are the patches. Anything else is refused: fewer (a masked autoencoder, a hierarchical encoder) and more (YOLOS puts
  its detection tokens last) alike.
* **Which parameters matter.** What the patches do not depend on (a pooling head, the mask token of pretraining, the
  norm before CLIP's projection) gets no gradient in the trial, and is taken out.
* **Whether the picture's size works.** Position embeddings are interpolated for another size than the checkpoint's.
"""

import inspect
from collections.abc import Collection
from math import isclose
from typing import Any, Self

import torch
from torch import Tensor

from nanovlm import CheckpointError, ConfigError, PatchGrid, hookimpl
from nanovlm.borrowed import (
    check_architecture,
    check_keys,
    layers,
    read_architecture,
    transformers_config,
    transformers_model,
)
from nanovlm.borrowed_encoder import (
    BorrowedEncoder,
    BorrowedEncoderConfig,
    check_tokens,
    patches_along,
    prune,
    trial,
)
from nanovlm.hub import WEIGHTS, fetch
from nanovlm.weights import load_weights, read_preprocessor, read_tensors, translated

KNOWN = "facebook/dinov2-small"  # its architecture and picture are the defaults below: planning it needs no network
DINOV2_SMALL = {
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 518,
    "patch_size": 14,
}


class HFVision(BorrowedEncoder):
    class Config(BorrowedEncoderConfig):
        architecture: dict[str, Any] = DINOV2_SMALL
        """The configuration of transformers, `model_type` included; of a checkpoint, what its config.json says."""

        @classmethod
        def tiny(cls) -> Self:
            sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
            return cls(architecture={"model_type": "dinov2", "image_size": 16, "patch_size": 4, **sizes}, image_size=16)

        def resolved(self) -> Self:
            architecture, picture = self.architecture, {}
            if self.weights == KNOWN:
                architecture, picture = DINOV2_SMALL, {"image_size": 224}
            elif self.weights != "random":
                architecture, picture = read_checkpoint(self.weights, asked=self.model_fields_set)
            elif "architecture" in self.model_fields_set:
                check_keys(architecture, transformers_config(architecture, vision_models))
            if "architecture" in self.model_fields_set:
                check_architecture(self.architecture, architecture, self.weights)
            # The picture may differ from the checkpoint's, whose preprocessor says only what is usual.
            return self.with_usual({"image_size": own_image_size(architecture)} | picture, architecture=architecture)

    def __init__(self, config: Config) -> None:
        size = config.image_size or own_image_size(config.architecture)
        super().__init__(config, size)
        self.config = config
        with torch.device("meta"):
            draft = build(config.architecture).eval()  # no layer is dropped
        kind = draft.config.model_type
        side = patches_along(kind, size, patch_size(draft))
        self.options = size_options(draft, size)
        prefix = count_prefix(draft)
        tokens, self.left_out = trial(kind, draft, size, lambda x: draft(x, **self.options).last_hidden_state)
        check_tokens(kind, tokens, side, prefix)
        self.grid = PatchGrid(side, side, tokens.shape[-1])
        self.model = build(config.architecture)
        prune(self.model, self.left_out)
        self.blocks = layers(self.model)

    def tokens(self, pictures: Tensor) -> Tensor:
        tokens: Tensor = self.model(pictures.to(self.model.dtype), **self.options).last_hidden_state
        return tokens

    def load_pretrained(self) -> None:
        if self.config.weights != "random":
            tensors = translated(self.model, read_tensors(fetch(self.config.weights, WEIGHTS)))
            load_weights(self.model, tensors, self.config.weights, ignored=(*IGNORED, *self.left_out))


# What checkpoints have besides the encoder: a text tower, projections into a joint space, heads of tasks, a mask token.
IGNORED = ("text_model.", "text_projection.", "visual_projection.", "logit_", "classifier.", "cls_classifier.",
           "distillation_classifier.", "decoder.", "lm_head.", "embeddings.mask_token")  # fmt: skip


def build(architecture: dict[str, Any]) -> Any:
    """The model with random weights; ConfigError for an architecture that transformers cannot build."""
    from transformers import AutoModel

    config = transformers_config(architecture, vision_models)
    model = transformers_model(AutoModel, config)
    if hasattr(config, "mask_ratio"):
        raise ConfigError(
            f"{config.model_type} is a masked autoencoder: it drops and shuffles patches, so its outputs are no grid; "
            "use an encoder that sees the whole picture (dinov2, vit, clip_vision_model, ...)"
        )
    return model


PREFIX_TOKENS = ("cls_token", "class_embedding", "distillation_token", "register_tokens")  # (C,) or (1, number, C)


def count_prefix(model: Any) -> int:
    """How many learnt tokens may stand before the patches."""
    tokens = [parameter for name, parameter in model.named_parameters() if name.rpartition(".")[2] in PREFIX_TOKENS]
    return sum(token.shape[-2] if token.ndim > 1 else 1 for token in tokens)


def size_options(model: Any, size: int) -> dict[str, Any]:
    """What ``forward`` needs to hear for pictures of another size (DINOv2 and others see it for themselves)."""
    option = "interpolate_pos_encoding"
    resizes = size != own_image_size(model.config.to_dict())
    return {option: True} if resizes and option in inspect.signature(model.forward).parameters else {}


def patch_size(model: Any) -> int:
    kind, patch = model.config.model_type, one_number("patch_size", getattr(model.config, "patch_size", None))
    if not patch:
        raise ConfigError(f"{kind} has no patch_size: hf_vision is for encoders that cut the picture into patches")
    return patch


def read_checkpoint(weights: str, asked: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """The architecture and the picture's options that a checkpoint's configs decide, but for those that are asked.

    CheckpointError if the preprocessor does something that no option stands for.
    """
    architecture, folder = read_architecture(weights, "vision_config")
    preprocessor = read_preprocessor(folder)
    try:
        return architecture, picture(preprocessor, asked) if preprocessor else {}
    except CheckpointError as error:
        raise CheckpointError(f"{weights}: its preprocessor has {error}") from None


FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def picture(preprocessor: dict[str, Any], asked: Collection[str] = ()) -> dict[str, Any]:
    """The options that a preprocessor's config decides."""
    size = preprocessor.get("crop_size" if preprocessor.get("do_center_crop") else "size")
    if isinstance(size, dict):
        size = size.get("shortest_edge") or [size.get("height"), size.get("width")]
    resample: Any = preprocessor.get("resample")
    if resample not in (None, *FILTERS) and "resample" not in asked:
        names = ", ".join(f"{name} ({number})" for number, name in FILTERS.items())
        raise CheckpointError(f"resample={resample!r}, none of {names}: choose one with the option resample")
    found = {
        "image_size": one_number("image_size", size) or None,
        "resample": FILTERS.get(resample),
        **normalisation(preprocessor, asked),
    }
    return {key: value for key, value in found.items() if value is not None}


def normalisation(preprocessor: dict[str, Any], asked: Collection[str]) -> dict[str, list[float] | None]:
    """``mean`` and ``std`` of pictures in [0, 1]; a preprocessor's own are of bytes times its ``rescale_factor``."""
    factor = (preprocessor.get("rescale_factor") or 1 / 255) if preprocessor.get("do_rescale", True) else 1.0
    found: dict[str, list[float] | None] = {}
    for key, neutral in (("mean", 0.0), ("std", 1.0)):
        given = preprocessor.get(f"image_{key}") if preprocessor.get("do_normalize", True) else neutral
        if given is None and not isclose(factor, 1 / 255) and key not in asked:
            raise CheckpointError(f"rescale_factor={factor} and no image_{key}: give the option {key}, in [0, 1]")
        colours = [given] * 3 if isinstance(given, int | float) else given  # one number is for all colours
        found[key] = colours and [colour / (255 * factor) for colour in colours]
    return found


def own_image_size(architecture: dict[str, Any]) -> int:
    """Pixels along each side of the pictures that an architecture is made for; 224 where it does not say."""
    return one_number("image_size", architecture.get("image_size")) or 224


def one_number(name: str, value: Any) -> int:
    """A number of pixels that may be given for both sides; 0 if it is not given."""
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) > 1:
        raise ConfigError(f"architecture: {name}={value!r}: hf_vision is for square pictures and patches")
    return int(sides.pop() or 0)


def vision_models() -> list[str]:
    """The model types that are for pictures, to suggest; hf_vision refuses those that are no grid of patches."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_MAPPING_NAMES

    return sorted({*MODEL_FOR_IMAGE_MAPPING_NAMES, "clip_vision_model", "siglip_vision_model"})


@hookimpl
def register_vision_encoders(register):
    register("hf_vision", HFVision)
