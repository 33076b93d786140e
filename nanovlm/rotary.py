"""Rotary positions: queries and keys are turned by angles that grow with the position."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def rotary_table(
    head_dim: int, max_positions: int, theta: float, rescale: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (P, d/2) of rotary positions (Su et al. 2021, arXiv 2104.09864), for all layers.

    ``rescale`` gets the frequencies (d/2,), in radians a position, and gives those that are to be used.
    """
    frequencies = 1 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rescale:
        frequencies = rescale(frequencies)
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of x (T, H, d) by the angles of its positions, cos and sin (T, 1, d/2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
