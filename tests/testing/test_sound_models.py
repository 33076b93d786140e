"""What an encoder or a projector may do, and no check holds against it."""

from typing import Literal

import pytest
import torch
from torch import nn

from nanovlm import ComponentConfig, ConfigError, ImageSpec, PatchGrid
from nanovlm.plugins import Registries
from nanovlm.testing.checks import bound_to, find
from nanovlm.testing.companions import Block, Encoder, Projector


class Dropping(Projector):
    """Noise in training."""

    def forward(self, patches):
        return nn.functional.dropout(super().forward(patches), 0.3, self.training)


class BeginsAtZero(Projector):
    """Gives nothing until it is trained."""

    def __init__(self, config, grid, text_dim):
        super().__init__(config, grid, text_dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)


class BeginsSmall(Projector):
    def __init__(self, config, grid, text_dim):
        super().__init__(config, grid, text_dim)
        nn.init.normal_(self.linear.weight, std=1e-4)
        nn.init.zeros_(self.linear.bias)


class TableOfSines(Projector):
    """A table that is computed and saved; the weights begin alike."""

    def __init__(self, config, grid, text_dim):
        super().__init__(config, grid, text_dim)
        nn.init.ones_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("table", torch.arange(grid.height * grid.width * grid.dim).sin().view(-1, grid.dim))

    def forward(self, patches):
        return super().forward(patches + self.table)


class Queries(Projector):
    """Asks with learnt queries; keys and values of one linear layer."""

    class Config(ComponentConfig):
        num_queries: int = 3
        """M, whatever the grid."""

    def __init__(self, config, grid, text_dim):
        super().__init__(config, grid, text_dim)
        self.num_tokens = config.num_queries
        self.queries = nn.Parameter(torch.randn(config.num_queries, text_dim))
        self.attention = nn.MultiheadAttention(text_dim, 4, dropout=0.1, batch_first=True)

    def forward(self, patches):
        seen = self.linear(patches)
        queries = self.queries.expand(len(seen), -1, -1)
        return queries + self.attention(queries, seen, seen, need_weights=False)[0]


class OptionInWords(Projector):
    """What would suit it is no number; and an option's name is a part of other words."""

    class Config(ComponentConfig):
        form: Literal["square", "free"] = "square"
        """Of the grid."""
        dim: int = 3
        """A number."""

    def __init__(self, config, grid, text_dim):
        super().__init__(config, grid, text_dim)
        if config.form == "square" and grid.height != grid.width:
            dimensions = f"{grid.height} x {grid.width}"
            raise ConfigError(f"form='square' cannot take a grid of the dimensions {dimensions}: use form='free'")


class Transformer(Encoder):
    """With a class token, which it drops again, and dropout in its one block."""

    def __init__(self, config):
        super().__init__(config)
        self.first = nn.Parameter(0.02 * torch.randn(1, 1, config.dim))
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(config.dim, 2, 32, batch_first=True, norm_first=True)])

    def forward(self, pixels):
        patches = self.patches(pixels.to(self.patches.weight.dtype) / 127.5 - 1).flatten(2).transpose(1, 2)
        x = torch.cat((self.first.expand(len(patches), -1, -1), patches), dim=1)
        return self.blocks[0](x)[:, 1:]


class Convolutions(Encoder):
    """Each patch sees a part of its neighbours."""

    def __init__(self, config):
        nn.Module.__init__(self)
        self.image, self.grid = ImageSpec(32), PatchGrid(8, 8, 24)
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        inner = (nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.GroupNorm(4, 24), nn.GELU(), nn.Conv2d(24, 24, 3, 1, 1))
        self.blocks = nn.ModuleList([nn.Sequential(*inner)])

    def forward(self, pixels):
        return self.blocks[0](self.stem(pixels.to(self.stem.weight.dtype) / 255)).flatten(2).transpose(1, 2)


class OneBlockThrice(Encoder):
    def __init__(self, config):
        super().__init__(config)
        del self.blocks
        self.block = Block(config.dim)
        self.blocks = [self.block] * 3


class FrozenPatches(Encoder):
    def __init__(self, config):
        super().__init__(config)
        self.patches.requires_grad_(False)


PROJECTORS = (Dropping, BeginsAtZero, BeginsSmall, TableOfSines, Queries, OptionInWords)
ENCODERS = (Transformer, Convolutions, OneBlockThrice, FrozenPatches)


@pytest.mark.parametrize("cls", [*PROJECTORS, *ENCODERS])
def test_all_of_it_passes(cls):
    kind = "projector" if cls in PROJECTORS else "vision_encoder"
    outcomes = [bound.outcome() for bound in bound_to(find(cls, kind, Registries()))]
    assert {outcome.check.name: outcome.problem for outcome in outcomes if outcome.problem} == {}
