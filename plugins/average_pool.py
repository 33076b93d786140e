"""Average pooling: the mean of each r x r block of patches is one image token, projected.

Source: DeCo (Yao et al. 2024, arXiv 2405.20985), which leaves all abstraction to the language model. As many tokens as
pixel shuffle gives, from r**2 times fewer weights.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from nanovlm import ComponentConfig, PatchGrid, hookimpl


class AveragePool(nn.Module):
    class Config(ComponentConfig):
        factor: Annotated[int, Field(ge=1)] = 2
        """r: how many patches are averaged along each side."""

    def __init__(self, config: Config, grid: PatchGrid, text_dim: int) -> None:
        super().__init__()
        self.blocks = grid.blocks(config.factor)
        self.num_tokens = grid.height * grid.width // config.factor**2
        self.linear = nn.Linear(grid.dim, text_dim, bias=False)

    def forward(self, patches: Tensor) -> Tensor:  # (B, N, C)
        blocks = patches.unflatten(1, self.blocks)  # (B, H/r, r, W/r, r, C)
        pooled = blocks.mean(dim=(2, 4)).flatten(1, 2)  # (B, M, C), M = N / r**2
        return self.linear(pooled)  # (B, M, D)


@hookimpl
def register_projectors(register):
    register("average_pool", AveragePool)
