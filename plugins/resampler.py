"""A Perceiver resampler: a fixed number of learned queries gather the image tokens from all patches.

Source: Flamingo (Alayrac et al. 2022, arXiv 2204.14198), after the Perceiver (Jaegle et al. 2021, arXiv 2103.03206);
in detail as Idefics has it (Laurençon et al. 2023, arXiv 2306.16527): no biases, ReLU for Flamingo's squared ReLU.
"""

from typing import Annotated, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nanovlm import ComponentConfig, PatchGrid, hookimpl

Positive = Annotated[int, Field(ge=1)]


class Resampler(nn.Module):
    class Config(ComponentConfig):
        num_queries: Positive = 64
        """M: how many image tokens, whatever the encoder's grid."""
        num_layers: Positive = 3
        """How often the queries look at the patches; Flamingo has 6 of them, Idefics2 has 3."""
        num_heads: Positive = 12
        """Attention heads of each layer."""
        head_dim: Positive = 64
        """The width of a head; together they need not be as wide as a patch."""

        @classmethod
        def tiny(cls) -> Self:
            return cls(num_queries=5, num_layers=2, num_heads=2, head_dim=4)

    def __init__(self, config: Config, grid: PatchGrid, text_dim: int) -> None:
        super().__init__()
        self.num_tokens = config.num_queries
        self.queries = nn.Parameter(torch.randn(config.num_queries, grid.dim) * grid.dim**-0.5)
        self.layers = nn.ModuleList(Layer(config, grid.dim) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(grid.dim)
        self.linear = nn.Linear(grid.dim, text_dim, bias=False)

    def forward(self, patches: Tensor) -> Tensor:  # (B, N, C)
        x = self.queries.expand(len(patches), -1, -1)  # (B, M, C)
        for layer in self.layers:
            x = layer(x, patches)
        return self.linear(self.norm(x))  # (B, M, D)


class Layer(nn.Module):
    def __init__(self, config: Resampler.Config, width: int) -> None:
        super().__init__()
        self.attention = CrossAttention(width, config.num_heads, config.head_dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width, bias=False),
            nn.ReLU(),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, x: Tensor, patches: Tensor) -> Tensor:  # (B, M, C), (B, N, C)
        x = x + self.attention(x, patches)
        return x + self.mlp(x)


class CrossAttention(nn.Module):
    """Every query attends to all patches, and to the queries."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.patch_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, heads * head_dim, bias=False) for _ in range(3))
        self.output = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x: Tensor, patches: Tensor) -> Tensor:  # (B, M, C), (B, N, C)
        x = self.norm(x)
        seen = torch.cat((self.patch_norm(patches), x), dim=1)  # (B, N+M, C)
        projected = self.query(x), self.key(seen), self.value(seen)
        q, k, v = (tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2) for tensor in projected)
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, heads, M, d)
        return self.output(attended.transpose(1, 2).flatten(2))


@hookimpl
def register_projectors(register):
    register("resampler", Resampler)
