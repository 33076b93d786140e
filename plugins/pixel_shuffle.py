"""Pixel shuffle: join each r x r block of patches into one image token, then project it.

Source: the connector of Idefics3 (Laurençon et al. 2024, arXiv 2408.12637), and of nanoVLM. Within a token the block's
patches follow one another in reading order, as there, so that their weights fit.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from nanovlm import ComponentConfig, PatchGrid, hookimpl
from nanovlm.interop.parts import TransformersPart


class PixelShuffle(nn.Module):
    class Config(ComponentConfig):
        factor: Annotated[int, Field(ge=1)] = 2
        """r: how many patches are joined along each side."""

    def __init__(self, config: Config, grid: PatchGrid, text_dim: int) -> None:
        super().__init__()
        self.factor = config.factor
        self.blocks = grid.blocks(config.factor)
        self.num_tokens = grid.height * grid.width // config.factor**2
        self.linear = nn.Linear(config.factor**2 * grid.dim, text_dim, bias=False)

    def forward(self, patches: Tensor) -> Tensor:  # (B, N, C)
        blocks = patches.unflatten(1, self.blocks)  # (B, H/r, r, W/r, r, C)
        blocks = blocks.transpose(2, 3).flatten(3)  # (B, H/r, W/r, r*r*C)
        return self.linear(blocks.flatten(1, 2))  # (B, M, D), M = N / r**2

    def to_transformers(self) -> TransformersPart:
        return TransformersPart(
            {"scale_factor": self.factor}, lambda name: name.replace("modality_projection.proj", "linear")
        )


@hookimpl
def register_projectors(register):
    register("pixel_shuffle", PixelShuffle)
