"""A two-layer MLP on each patch by itself: as many image tokens as patches.

Source: LLaVA-1.5 (Liu et al. 2023, arXiv 2310.03744).
"""

from torch import Tensor, nn

from nanovlm import ComponentConfig, PatchGrid, hookimpl


class MLP(nn.Module):
    class Config(ComponentConfig):
        pass  # both layers are as wide as the text, as in the paper

    def __init__(self, config: Config, grid: PatchGrid, text_dim: int) -> None:
        super().__init__()
        self.num_tokens = grid.height * grid.width  # M = N
        self.layers = nn.Sequential(nn.Linear(grid.dim, text_dim), nn.GELU(), nn.Linear(text_dim, text_dim))

    def forward(self, patches: Tensor) -> Tensor:  # (B, N, C)
        return self.layers(patches)  # (B, M, D)


@hookimpl
def register_projectors(register):
    register("mlp", MLP)
