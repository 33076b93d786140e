"""What a component gives, against what it has promised: told by its name, and before anything is trained."""

from torch import Tensor

from nanovlm.components import PatchGrid
from nanovlm.errors import CheckpointError, PluginError


def as_promised(patches: Tensor, grid: PatchGrid, count: int, name: str) -> Tensor:
    """The (B, N, C) patches of ``count`` = B pictures; a CheckpointError if the encoder's ``grid`` is another."""
    expected = (count, grid.height * grid.width, grid.dim)
    if patches.shape != expected:
        raise CheckpointError(
            f"vision_encoder {name}: gives patches {tuple(patches.shape)}, its {grid.height} x {grid.width} grid "
            f"promises {expected}: does it add prefix tokens or drop patches?"
        )
    return patches


def as_many_as_promised(image_tokens: Tensor, expected: tuple[int, int, int], name: str) -> Tensor:
    """The image tokens of a projector; a PluginError if they are not the ``expected`` (B, M, D)."""
    if image_tokens.shape != expected:
        raise PluginError(
            f"projector {name}: gives image tokens {tuple(image_tokens.shape)}, its num_tokens={expected[1]} promises "
            f"{expected}; `nanovlm check {name}` says more"
        )
    return image_tokens
