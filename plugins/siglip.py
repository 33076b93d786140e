"""SigLIP's vision tower in plain PyTorch; SigLIP 2's of a fixed resolution is the same.

Source: Zhai et al. 2023, arXiv 2303.15343; Tschannen et al. 2025, arXiv 2502.14786 (SigLIP 2). The towers are pre-norm
vision transformers (Dosovitskiy et al. 2020, arXiv 2010.11929) without a class token: every output is a patch.
"""

from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from nanovlm import CheckpointError, ComponentConfig, ConfigError, ImageSpec, PatchGrid, VisionEncoder, hookimpl
from nanovlm.components import Resample, parse
from nanovlm.hub import CONFIG, WEIGHTS, fetch
from nanovlm.interop.parts import TransformersPart
from nanovlm.weights import differing, load_weights, read_checkpoint_config, read_preprocessor, read_tensors

KNOWN = "google/siglip-base-patch16-224"  # its architecture is the defaults below, so planning it needs no network
Positive = Annotated[int, Field(ge=1)]


class Siglip(VisionEncoder):
    class Config(ComponentConfig):
        known_sizes = {"google/siglip-base-patch16-224": 813_000_000}  # the text tower, which is not used, included
        weights: str = "random"
        """A hub id, a folder, or `random`."""
        image_size: Positive = 224
        """Pixels along each side of the (square) picture; another size than the checkpoint's interpolates positions."""
        patch_size: Positive = 16
        """Pixels along each side of a patch."""
        hidden_size: Positive = 768
        """C, the width of a patch."""
        intermediate_size: Positive = 3072
        """The width within the MLP."""
        num_hidden_layers: Positive = 12
        """Blocks of attention and an MLP, one after the other."""
        num_attention_heads: Positive = 12
        """Heads of each block's attention; they divide hidden_size."""
        layer_norm_eps: float = 1e-6
        """Added to the variance that a norm divides by."""
        resample: Resample = "bicubic"
        """Pillow's filter for resizing pictures; by default the checkpoint's."""
        image_mean: Annotated[float, Field(allow_inf_nan=False)] = 0.5
        """Subtracted from pixels in [0, 1], of each colour."""
        image_std: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
        """They are then divided by this. Mean 0 and std 1 leave them in [0, 1], as nanoVLM does."""

        @classmethod
        def tiny(cls) -> Self:
            return cls(
                image_size=16,
                patch_size=4,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
            )

        def resolved(self) -> Self:
            if self.weights == "random":
                return self
            found = architecture(self.weights)
            chosen = self.model_fields_set & PICTURE  # the user's, where the architecture is not
            if "image_size" in chosen and self.image_size != found["image_size"]:
                check_size(self.image_size, found["patch_size"])
            return self.fill_in({key: value for key, value in found.items() if key not in chosen})

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.weights == "random":
            check_size(config.image_size, config.patch_size)
        if config.hidden_size % config.num_attention_heads:
            raise ConfigError(
                f"num_attention_heads={config.num_attention_heads} must divide hidden_size={config.hidden_size}"
            )
        self.config = config
        self.image = ImageSpec(config.image_size, config.resample)
        side = config.image_size // config.patch_size  # of 384 pixels in patches of 14, the last 6 are not seen
        self.grid = PatchGrid(side, side, config.hidden_size)
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Parameter(torch.randn(side * side, config.hidden_size) * config.hidden_size**-0.5)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:  # (B, 3, H, W) uint8
        mean, std = self.config.image_mean, self.config.image_std
        normalised = pixels.to(self.position_embedding.dtype) / (255 * std) - mean / std  # by default in [-1, 1]
        patches = self.patch_embedding(normalised).flatten(2).transpose(1, 2)  # (B, N, C)
        x = patches + self.position_embedding
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def load_pretrained(self) -> None:
        if self.config.weights == "random":
            return
        tensors = read_tensors(fetch(self.config.weights, WEIGHTS))
        own_size = architecture(self.config.weights)["image_size"]
        tensors = {
            name: resized(tensor, own_size // self.config.patch_size, self.grid.height)
            if rename(name) == "position_embedding"
            else tensor
            for name, tensor in tensors.items()
        }
        load_weights(self, tensors, self.config.weights, rename, ignored=IGNORED)

    def to_transformers(self) -> TransformersPart:
        sizes = self.config.model_dump(exclude={"weights", *PREPARED})
        mean, std = self.config.image_mean, self.config.image_std
        return TransformersPart(sizes | TOWER, rename, {"image_mean": [mean] * 3, "image_std": [std] * 3})


def check_size(image_size: int, patch_size: int) -> None:
    """Only of a checkpoint that was trained so, the encoder leaves a rest of the picture out."""
    if image_size % patch_size:
        near = max(patch_size, round(image_size / patch_size) * patch_size)
        raise ConfigError(f"image_size={image_size} must be a multiple of patch_size={patch_size}, for example {near}")


def resized(positions: Tensor, own_side: int, side: int) -> Tensor:
    """Position embeddings (N', C) of one square grid for another, (N, C); what is no such grid stays, to be refused."""
    if own_side == side or len(positions) != own_side**2:
        return positions
    grid = positions.float().T.unflatten(1, (own_side, own_side))  # (C, H', W')
    grid = F.interpolate(grid[None], size=(side, side), mode="bicubic", align_corners=False)[0]
    return grid.flatten(1).T


class Block(nn.Module):
    def __init__(self, config: Siglip.Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config.hidden_size, config.num_attention_heads)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, config.intermediate_size),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.intermediate_size, config.hidden_size),
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, N, C)
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Self-attention of every patch to every patch of its picture."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:  # (B, N, C)
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, C/heads)
        return self.output(attended.transpose(1, 2).flatten(2))


OPTIONS = tuple(key for key in Siglip.Config.model_fields if key != "weights")
PREPARED = {"resample", "image_mean", "image_std"}  # how a picture is prepared, besides its size
PICTURE = {"image_size", *PREPARED}
NAFLEX = ("siglip2", "siglip2_vision_model")
# By Pillow's number, as a preprocessor has it: 3, bicubic, for SigLIP; 2, bilinear, for SigLIP 2.
FILTERS: dict[Any, str] = {number: number.name.lower() for number in Image.Resampling}

# What a config may say, if anything, and a preprocessor's: other encoders are for hf_vision.
TOWER = {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3, "attention_dropout": 0.0}
PREPROCESSING = {
    "do_resize": True, "do_center_crop": False, "do_pad": False,
    "do_rescale": True, "rescale_factor": 1 / 255,
}  # fmt: skip


def architecture(weights: str) -> dict[str, Any]:
    """The options that a checkpoint's ``config.json`` and its preprocessor's decide.

    CheckpointError if it is no SigLIP, or one that this encoder cannot represent.
    """
    if weights == KNOWN:
        return {key: Siglip.Config.model_fields[key].default for key in OPTIONS}
    folder = fetch(weights, CONFIG)
    whole = read_checkpoint_config(folder)
    kind, vision = whole.get("model_type"), whole.get("vision_config", whole)
    if kind in NAFLEX:
        raise CheckpointError(
            f"{folder} holds a NaFlex SigLIP 2 (model_type {kind!r}), whose pictures have no fixed size: "
            "use a checkpoint of a fixed one, google/siglip2-base-patch16-224 for example"
        )
    if kind not in ("siglip", "siglip_vision_model") or not isinstance(vision, dict):
        raise CheckpointError(f"{folder} holds a model of type {kind!r}, not a SigLIP; hf_vision reads other encoders")
    found = {key: vision[key] for key in OPTIONS if key in vision}  # what a config leaves out is the base size
    size = found.get("image_size", Siglip.Config().image_size)
    preprocessor = read_preprocessor(folder)
    expected = PREPROCESSING | {"size": {"height": size, "width": size}}
    normalised = normalisation(preprocessor)
    coloured = [f"{key}={preprocessor[key]!r}" for key, values in normalised.items() if len(values) > 1]
    if refused := differing(whole | vision, TOWER) + differing(preprocessor, expected) + coloured:
        raise CheckpointError(
            f"{folder}: this encoder cannot represent {', '.join(refused)}; hf_vision reads other encoders"
        )
    if (resample := preprocessor.get("resample")) is not None:
        found["resample"] = FILTERS.get(resample, resample)
    found |= {key: value for key, (value,) in normalised.items()}
    checked = parse(Siglip.Config, found, where=str(folder / "config.json"))
    return {key: getattr(checked, key) for key in OPTIONS}


def normalisation(preprocessor: dict[str, Any]) -> dict[str, set[float]]:
    """The values of ``image_mean`` and ``image_std`` that a preprocessor says, if any: one, or those of each colour."""
    if preprocessor.get("do_normalize") is False:
        return {"image_mean": {0.0}, "image_std": {1.0}}
    given = {key: preprocessor[key] for key in ("image_mean", "image_std") if preprocessor.get(key) is not None}
    return {key: set(value) if isinstance(value, list) else {value} for key, value in given.items()}


# What a checkpoint has besides the patches: the text tower and the pooling head (a tower's own file has no prefix).
IGNORED = ("text_model.", "logit_", "vision_model.head.", "head.", "vision_model.embeddings.position_ids")
RENAMED = (
    ("vision_model.", ""),
    ("embeddings.position_embedding.weight", "position_embedding"),
    ("embeddings.", ""),
    ("encoder.layers.", "blocks."),
    ("post_layernorm.", "norm."),
    ("layer_norm", "norm"),
    ("self_attn.", "attention."),
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("out_proj", "output"),
    ("mlp.fc1", "mlp.0"),
    ("mlp.fc2", "mlp.2"),
)


def rename(name: str) -> str:
    for old, new in RENAMED:
        name = name.replace(old, new)
    return name


@hookimpl
def register_vision_encoders(register):
    register("siglip", Siglip)
