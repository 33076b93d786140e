"""Pixel shuffle: join each r x r block of patches into one image token, then project it.

Source: the connector of Idefics3 (Laurençon et al. 2024, arXiv 2408.12637) and of nanoVLM.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from nanovlm import ComponentConfig, ConfigError, PatchGrid, hookimpl


class PixelShuffle(nn.Module):
    class Config(ComponentConfig):
        factor: Annotated[int, Field(ge=1)] = 2
        """r: how many patches are joined along each side."""

    def __init__(self, config: Config, grid: PatchGrid, text_dim: int) -> None:
        super().__init__()
        r = config.factor
        if grid.height % r or grid.width % r:
            raise ConfigError(
                f"factor={r} must divide the {grid.height} x {grid.width} patch grid; {divisors(grid)} do"
            )
        self.blocks = (grid.height // r, r, grid.width // r, r)
        self.num_tokens = grid.height * grid.width // r**2
        self.linear = nn.Linear(r**2 * grid.dim, text_dim, bias=False)

    def forward(self, patches: Tensor) -> Tensor:  # (B, N, C)
        blocks = patches.unflatten(1, self.blocks)  # (B, H/r, r, W/r, r, C)
        blocks = blocks.transpose(2, 3).flatten(3)  # (B, H/r, W/r, r*r*C)
        return self.linear(blocks.flatten(1, 2))  # (B, M, D), M = N / r**2


def divisors(grid: PatchGrid) -> str:
    return ", ".join(str(r) for r in range(1, grid.height + 1) if grid.height % r == 0 == grid.width % r)


@hookimpl
def register_projectors(register):
    register("pixel_shuffle", PixelShuffle)
