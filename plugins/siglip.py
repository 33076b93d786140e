"""SigLIP's vision tower in plain PyTorch.

Source: Zhai et al. 2023, arXiv 2303.15343. The towers are pre-norm vision transformers (Dosovitskiy et al. 2020,
arXiv 2010.11929) without a class token: every output is a patch.
"""

from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nanovlm import CheckpointError, ComponentConfig, ConfigError, ImageSpec, PatchGrid, VisionEncoder, hookimpl
from nanovlm.hub import CONFIG, WEIGHTS, fetch
from nanovlm.weights import load_weights, read_json, read_tensors

KNOWN = "google/siglip-base-patch16-224"  # its architecture is the defaults below, so planning it needs no network
Positive = Annotated[int, Field(ge=1)]


class Siglip(VisionEncoder):
    class Config(ComponentConfig):
        weights: str = "random"
        """A hub id, a folder, or `random`."""
        image_size: Positive = 224
        """Pixels along each side of the (square) picture."""
        patch_size: Positive = 16
        """Pixels along each side of a patch."""
        hidden_size: Positive = 768
        """C, the width of a patch."""
        intermediate_size: Positive = 3072
        """The width within the MLP."""
        num_hidden_layers: Positive = 12
        num_attention_heads: Positive = 12
        layer_norm_eps: float = 1e-6
        resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
        """Pillow's filter for resizing pictures."""

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
            return self.fill_in(architecture(self.weights))

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.image_size % config.patch_size:
            raise ConfigError(f"image_size={config.image_size} must be a multiple of patch_size={config.patch_size}")
        if config.hidden_size % config.num_attention_heads:
            raise ConfigError(
                f"num_attention_heads={config.num_attention_heads} must divide hidden_size={config.hidden_size}"
            )
        self.config = config
        self.image = ImageSpec(config.image_size, config.resample)
        side = config.image_size // config.patch_size
        self.grid = PatchGrid(side, side, config.hidden_size)
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Parameter(torch.randn(side * side, config.hidden_size) * config.hidden_size**-0.5)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:  # (B, 3, H, W) uint8
        normalised = pixels.to(self.position_embedding.dtype) / 127.5 - 1  # [-1, 1], as the checkpoints were trained
        patches = self.patch_embedding(normalised).flatten(2).transpose(1, 2)  # (B, N, C)
        x = patches + self.position_embedding
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def load_pretrained(self) -> None:
        if self.config.weights != "random":
            tensors = read_tensors(fetch(self.config.weights, WEIGHTS))
            load_weights(self, tensors, self.config.weights, rename, ignored=IGNORED)


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


def architecture(weights: str) -> dict[str, int | float]:
    """The options that a checkpoint's ``config.json`` decides."""
    if weights == KNOWN:
        return {
            key: field.default
            for key, field in Siglip.Config.model_fields.items()
            if key not in ("weights", "resample")
        }
    folder = fetch(weights, CONFIG)
    config = read_json(folder / "config.json")
    vision = config.get("vision_config", config)
    if not isinstance(vision, dict) or vision.get("model_type") not in ("siglip_vision_model", "siglip2_vision_model"):
        raise CheckpointError(
            f"{folder} holds a model of type {config.get('model_type')!r}, not a SigLIP; hf_vision reads other encoders"
        )
    if (act := vision.get("hidden_act", "gelu_pytorch_tanh")) != "gelu_pytorch_tanh":
        raise CheckpointError(
            f"{folder}: this encoder cannot represent hidden_act={act!r}; hf_vision reads other encoders"
        )
    defaults = {
        key: field.default for key, field in Siglip.Config.model_fields.items() if key not in ("weights", "resample")
    }
    return {
        key: vision.get(key, default) for key, default in defaults.items()
    }  # what a config leaves out is the base size


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
