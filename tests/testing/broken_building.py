"""Encoders and projectors that are built wrongly, or lose their weights: a sound companion with one small change."""

import numpy
import torch
import torch.nn.functional as F
from torch import nn

from nanovlm import ConfigError
from nanovlm.testing.companions import Encoder, Projector


class NamesADevice(Projector):
    def __init__(self, config, grid, text_dim):
        super().__init__(config, grid, text_dim)
        self.scale = nn.Parameter(torch.ones(text_dim, device="cpu"))

    def forward(self, patches):
        return super().forward(patches) * self.scale


class LooksAtItsWeights(Projector):
    def __init__(self, config, grid, text_dim):
        super().__init__(config, grid, text_dim)
        if self.linear.weight.abs().max() > 10:
            raise ConfigError("the weights are too large")


class SuitsNoRealGrid(Projector):
    def __init__(self, config, grid, text_dim):
        if grid.height > 13:
            raise ConfigError("more than 13 rows")
        super().__init__(config, grid, text_dim)


class OtherPartsOnMeta(Projector):
    def __init__(self, config, grid, text_dim):
        super().__init__(config, grid, text_dim)
        if not self.linear.weight.is_meta:
            self.scale = nn.Parameter(torch.ones(text_dim))


class OtherShapesOnMeta(Projector):
    def __init__(self, config, grid, text_dim):
        super().__init__(config, grid, text_dim)
        self.register_buffer("size", torch.ones(1 if self.linear.weight.is_meta else 2))


class LargeTiny(Encoder):
    class Config(Encoder.Config):
        dim: int = 512
        """C, the width of a patch."""


class DrawnByNumpy(Projector):
    def __init__(self, config, grid, text_dim):
        super().__init__(config, grid, text_dim)
        self.scale = nn.Parameter(torch.from_numpy(numpy.random.rand(text_dim)).float())


class SeedsItself(Encoder):
    def __init__(self, config):
        torch.manual_seed(0)
        super().__init__(config)


class DrawsInNumpy(Projector):
    def __init__(self, config, grid, text_dim):
        numpy.random.rand()
        super().__init__(config, grid, text_dim)


class DrawsInForward(Encoder):
    def forward(self, pixels):
        torch.rand(1)
        return super().forward(pixels)


class KeepsNoWeights(Encoder):
    def __init__(self, config):
        super().__init__(config)
        self.scale = torch.rand(config.dim)

    def forward(self, pixels):
        return super().forward(pixels) * self.scale


class DropsOutInEval(Projector):
    def forward(self, patches):
        return F.dropout(super().forward(patches))


BROKEN: dict[str, list[tuple[str, type | str, str]]] = {
    "builds from its defaults on meta": [
        ("projector", NamesADevice, "makes scale on another device than `meta`"),
        ("projector", LooksAtItsWeights, "fails to build from its defaults on the `meta` device (which has shapes"),
        ("projector", SuitsNoRealGrid, "suits by its defaults none of the grids 14 x 14, 16 x 16, 32 x 32, 27 x 27: "),
    ],
    "builds the same on meta": [
        ("projector", NamesADevice, "makes scale on another device than `meta`"),
        ("projector", OtherPartsOnMeta, "has scale only for real or only on `meta`"),
        ("projector", OtherShapesOnMeta, "has size (2,) for real, and (1,) on `meta`"),
    ],
    "tiny is quick": [("vision_encoder", LargeTiny, "parameters from `Config.tiny()`, where at most 1,000,000")],
    "weights are the seeds alone": [
        ("projector", DrawnByNumpy, "draws other weights from the same seed in scale"),
        ("vision_encoder", SeedsItself, "draws the same weights from every seed"),
    ],
    "global randomness is left alone": [
        ("projector", DrawsInNumpy, "changes the global random state of numpy when it is built"),
        ("vision_encoder", DrawsInForward, "random state of torch in a forward pass in eval mode"),
    ],
    "weights survive a file": [
        ("vision_encoder", KeepsNoWeights, "computes something else from its own weights, saved and loaded (off by"),
        ("projector", DropsOutInEval, "computes something else each time in eval mode"),
    ],
}  # fmt: skip
