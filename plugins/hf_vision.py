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
import textwrap
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from nanovlm import ComponentConfig, ConfigError, ImageSpec, PatchGrid, VisionEncoder, hookimpl, unknown
from nanovlm.hub import CONFIG, WEIGHTS, fetch
from nanovlm.weights import load_weights, read_json, read_tensors, translated

KNOWN = "facebook/dinov2-small"  # its architecture and picture are the defaults below: planning it needs no network
DINOV2_SMALL = {
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 518,
    "patch_size": 14,
}
Triple = Annotated[list[float], Field(min_length=3, max_length=3)]


class HFVision(VisionEncoder):
    class Config(ComponentConfig):
        weights: str = "random"
        """A hub id, a folder, or `random`."""
        architecture: dict[str, Any] = DINOV2_SMALL
        """The configuration of transformers, `model_type` included; of a checkpoint, what its config.json says."""
        image_size: Annotated[int, Field(ge=0)] = 0
        """Pixels along each side of the (square) picture; 0 is the checkpoint's own (its preprocessor's, if any)."""
        resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
        """Pillow's filter for resizing pictures; by default the checkpoint's."""
        mean: Triple = [0.485, 0.456, 0.406]
        """Of red, green and blue in [0, 1], subtracted from a picture; by default the checkpoint's, else ImageNet's."""
        std: Triple = [0.229, 0.224, 0.225]
        """What a picture is divided by, after that; by default the checkpoint's, else ImageNet's."""

        @classmethod
        def tiny(cls) -> Self:
            sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
            return cls(architecture={"model_type": "dinov2", "image_size": 16, "patch_size": 4, **sizes}, image_size=16)

        def resolved(self) -> Self:
            found = read_checkpoint(self.weights) if self.weights not in ("random", KNOWN) else {}
            if self.weights == KNOWN:
                found = {"architecture": DINOV2_SMALL, "image_size": 224}
            architecture = found.get("architecture", self.architecture)
            if "architecture" in self.model_fields_set and (odd := differences(self.architecture, architecture)):
                raise ConfigError(
                    f"architecture: {', '.join(odd)}, the checkpoint {self.weights!r} says otherwise: "
                    "leave the option out, or use weights: random"
                )
            # The picture may differ from the checkpoint's, whose preprocessor says only what is usual.
            asked = {key for key in self.model_fields_set if key != "image_size" or self.image_size}
            usual = {"image_size": own_image_size(architecture)} | found
            return self.model_copy(
                update={key: value for key, value in usual.items() if key not in asked} | {"architecture": architecture}
            )

    mean: Tensor
    std: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        size = config.image_size or own_image_size(config.architecture)
        self.image = ImageSpec(size, config.resample)
        with torch.device("meta"):
            draft = build(config.architecture)
        side = patches_along(draft, size)
        self.options = size_options(draft, size)
        tokens, self.left_out = trial(draft, size, self.options)
        check_tokens(draft, tokens, side)
        self.grid = PatchGrid(side, side, tokens.shape[-1])
        self.model = build(config.architecture)
        prune(self.model, {id(p) for name, p in self.model.named_parameters() if name in self.left_out})
        self.blocks = layers(self.model)
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:  # (B, 3, H, W) uint8
        normalised = (pixels / 255 - self.mean) / self.std
        tokens: Tensor = self.model(normalised.to(self.model.dtype), **self.options).last_hidden_state
        return tokens[:, -self.grid.height * self.grid.width :]  # (B, N, C), without the prefix tokens

    def load_pretrained(self) -> None:
        if self.config.weights != "random":
            tensors = translated(self.model, read_tensors(fetch(self.config.weights, WEIGHTS)))
            load_weights(self.model, tensors, self.config.weights, ignored=(*IGNORED, *self.left_out))


# What checkpoints have besides the encoder: a text tower, projections into a joint space, heads of tasks, a mask token.
IGNORED = ("text_model.", "text_projection.", "visual_projection.", "logit_", "classifier.", "cls_classifier.",
           "distillation_classifier.", "decoder.", "lm_head.", "embeddings.mask_token")  # fmt: skip


def build(architecture: dict[str, Any]) -> Any:
    """The model with random weights; ConfigError for an architecture that transformers cannot build."""
    from transformers import CONFIG_MAPPING, AutoModel

    kind = str(architecture.get("model_type", ""))
    if kind not in CONFIG_MAPPING:
        raise ConfigError(f"architecture: {unknown('model_type', kind, vision_models())}")
    if odd := [key for key in architecture if key in NOISE or key.startswith("_")]:
        raise ConfigError(f"architecture: {', '.join(odd)} is not about the architecture: leave it out")
    try:
        config = CONFIG_MAPPING[kind](**{key: value for key, value in architecture.items() if key != "model_type"})
        # Never code from a checkpoint, and always fp32: what lower precision there is, the trainer decides.
        model = AutoModel.from_config(config, trust_remote_code=False, dtype=torch.float32)
    except Exception as error:  # whatever the code of an architecture stumbles over
        raise ConfigError(f"architecture: transformers cannot build this {kind}: {summary(error)}") from None
    if hasattr(config, "mask_ratio"):
        raise ConfigError(
            f"{kind} is a masked autoencoder: it drops and shuffles patches, so its outputs are no grid; "
            "use an encoder that sees the whole picture (dinov2, vit, clip_vision_model, ...)"
        )
    return model


def trial(draft: Any, size: int, options: dict[str, Any]) -> tuple[Tensor, tuple[str, ...]]:
    """What an encoder on ``meta`` gives for two pictures (2, ..., C), and the parameters that this does not depend on.

    Two, because some encoders take all pictures for one long sequence.
    """
    kind = draft.config.model_type
    draft.eval()  # no layer is dropped
    try:
        with torch.enable_grad():
            output: Tensor = draft(torch.empty(2, 3, size, size, device="meta"), **options).last_hidden_state
            output.sum().backward()
    except Exception as error:  # whatever a model that is not for pictures stumbles over
        raise ConfigError(
            f"{kind} does not take pictures of {size} x {size} pixels: {summary(error)}\n"
            "  Its own size may work (leave image_size out); an encoder of videos or of several inputs does not"
        ) from None
    unused = [name for name, p in draft.named_parameters() if p.requires_grad and p.grad is None]
    return output.detach(), tuple(sorted(unused))


def prune(module: nn.Module, unused: set[int]) -> None:
    """Take parameters (by id) out of a module: one by one, or with the whole submodule that they make up."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        if id(parameter) in unused:
            setattr(module, name, None)
    for name, child in list(module.named_children()):
        own = {id(parameter) for parameter in child.parameters()}
        if own and own <= unused:
            setattr(module, name, nn.Identity())  # still called, on what nobody reads
        else:
            prune(child, unused)


PREFIX_TOKENS = ("cls_token", "class_embedding", "distillation_token", "register_tokens")  # (C,) or (1, number, C)


def check_tokens(model: Any, tokens: Tensor, side: int) -> None:
    """ConfigError unless the outputs are the grid's patches, after the prefix tokens or without them."""
    kind, patches = model.config.model_type, side * side
    if tokens.ndim != 3:
        raise ConfigError(
            f"{kind} gives {tuple(tokens.shape)}, a feature map and not one token a patch (B, N, C): "
            "convolutional encoders are not for hf_vision"
        )
    if tokens.shape[0] != 2:
        raise ConfigError(
            f"{kind} gives {tuple(tokens.shape)} for two pictures, one sequence and not one a picture (B, N, C): "
            "such encoders are not for hf_vision"
        )
    found = tokens.shape[1]
    prefix = sum(
        parameter.shape[-2] if parameter.ndim > 1 else 1
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] in PREFIX_TOKENS
    )
    if found < patches:
        raise ConfigError(
            f"{kind} gives {found} tokens for {side} x {side} = {patches} patches: "
            "it drops patches (a masked autoencoder) or joins them (a hierarchical encoder), so they are no grid"
        )
    if found not in (patches, patches + prefix):
        raise ConfigError(
            f"{kind} gives {found} tokens for {side} x {side} = {patches} patches, but only {prefix} are known to "
            f"stand before them (parameters called {', '.join(PREFIX_TOKENS)}): which ones are patches is unclear"
        )


def layers(model: nn.Module) -> nn.ModuleList:
    """Of a model's lists of modules, the one with most of the parameters."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda modules: sum(parameter.numel() for parameter in modules.parameters()))


def size_options(model: Any, size: int) -> dict[str, Any]:
    """What ``forward`` needs to hear for pictures of another size (DINOv2 and others see it for themselves)."""
    option = "interpolate_pos_encoding"
    resizes = size != own_image_size(model.config.to_dict())
    return {option: True} if resizes and option in inspect.signature(model.forward).parameters else {}


def patches_along(model: Any, size: int) -> int:
    """The side of the grid."""
    kind, patch = model.config.model_type, one_number("patch_size", getattr(model.config, "patch_size", None))
    if not patch:
        raise ConfigError(f"{kind} has no patch_size: hf_vision is for encoders that cut the picture into patches")
    if size % patch:
        near = max(patch, round(size / patch) * patch)
        raise ConfigError(f"image_size={size} must be a multiple of {kind}'s patch_size={patch}, for example {near}")
    return size // patch


def read_checkpoint(weights: str) -> dict[str, Any]:
    """The options that a checkpoint's ``config.json`` and ``preprocessor_config.json`` decide."""
    folder = fetch(weights, CONFIG)
    whole: dict[str, Any] = read_json(folder / "config.json")
    tower = whole.get("vision_config", whole)
    if "quantization_config" in whole:
        raise ConfigError(
            f"{weights!r} is quantized, which cannot be trained: name the checkpoint that it was made from"
        )
    architecture = {key: value for key, value in tower.items() if not (key in NOISE or key.startswith("_"))}
    architecture.setdefault("model_type", f"{whole.get('model_type', '')}_vision_model")
    files = [folder / name for name in ("preprocessor_config.json", "processor_config.json")]
    processors: list[Any] = [read_json(file) for file in files if file.is_file()]
    return {"architecture": architecture} | (picture(processors[0]) if processors else {})


# Of a checkpoint's config: code (an attention kernel of the hub, say), precision, and how it came about.
NOISE = ("auto_map", "attn_implementation", "architectures", "dtype", "torch_dtype", "transformers_version")
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def picture(preprocessor: dict[str, Any]) -> dict[str, Any]:
    """The options that a preprocessor's config decides."""
    preprocessor = preprocessor.get("image_processor", preprocessor)  # of a processor of text and pictures
    size = preprocessor.get("crop_size" if preprocessor.get("do_center_crop") else "size")
    if isinstance(size, dict):
        size = size.get("shortest_edge") or [size.get("height"), size.get("width")]
    mean, std = preprocessor.get("image_mean"), preprocessor.get("image_std")
    if not preprocessor.get("do_normalize", True):
        mean, std = 0.0, 1.0
    found = {
        "image_size": one_number("image_size", size) or None,
        "resample": FILTERS.get(preprocessor.get("resample", -1)),
        "mean": [mean] * 3 if isinstance(mean, int | float) else mean,  # one number is for all colours
        "std": [std] * 3 if isinstance(std, int | float) else std,
    }
    return {key: value for key, value in found.items() if value is not None}


def own_image_size(architecture: dict[str, Any]) -> int:
    """Pixels along each side of the pictures that an architecture is made for; 224 where it does not say."""
    return one_number("image_size", architecture.get("image_size")) or 224


def one_number(name: str, value: Any) -> int:
    """A number of pixels that may be given for both sides; 0 if it is not given."""
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) > 1:
        raise ConfigError(f"architecture: {name}={value!r}: hf_vision is for square pictures and patches")
    return int(sides.pop() or 0)


def differences(given: dict[str, Any], found: dict[str, Any]) -> list[str]:
    return [f"{key}={value!r}" for key, value in given.items() if key not in found or found[key] != value]


def vision_models() -> list[str]:
    """The model types that are for pictures, to suggest; hf_vision refuses those that are no grid of patches."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_MAPPING_NAMES

    return sorted({*MODEL_FOR_IMAGE_MAPPING_NAMES, "clip_vision_model", "siglip_vision_model"})


def summary(error: Exception) -> str:
    return textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__


@hookimpl
def register_vision_encoders(register):
    register("hf_vision", HFVision)
