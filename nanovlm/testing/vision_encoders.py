"""What every vision encoder must do."""

from __future__ import annotations

import torch

from nanovlm.components import ImageSpec, PatchGrid
from nanovlm.testing.blocks import require_blocks
from nanovlm.testing.checks import Subject, Violation, check
from nanovlm.testing.compiling import require_compiled
from nanovlm.testing.models import given_to, output_of, tiny


@check("vision_encoder")
def patches_as_promised(subject: Subject) -> None:
    """gives the patches that its `grid` promises, in fp32, whatever the number of pictures."""
    encoder = tiny(subject).eval()
    for name, kind in (("image", ImageSpec), ("grid", PatchGrid)):
        if not isinstance(getattr(encoder, name, None), kind):
            raise Violation(f"has no `{name}`: set self.{name} = {kind.__name__}(...) in __init__")
    grid = encoder.grid
    for batch in (1, 3):
        patches = output_of(subject, encoder, given_to(subject, encoder, batch))
        expected = (batch, grid.height * grid.width, grid.dim)
        if tuple(patches.shape) != expected:
            raise Violation(
                f"gives {tuple(patches.shape)} for pixels {(batch, 3, encoder.image.size, encoder.image.size)}; its "
                f"{grid.height} x {grid.width} grid of {grid.dim} numbers each promises {expected}: does it add prefix "
                "tokens, or drop patches?"
            )
        if patches.dtype != torch.float32:
            raise Violation(f"gives {patches.dtype} outside of autocast; torch.float32 is expected, as its weights are")


@check("vision_encoder")
@torch.no_grad()
def patches_in_reading_order(subject: Subject) -> None:
    """has its patches in reading order: what changes in one place of the picture changes that patch most."""
    encoder = tiny(subject).eval()
    grid, size = encoder.grid, encoder.image.size
    pixels = given_to(subject, encoder, batch=1)
    plain = encoder(pixels)[0]
    height, width = size // grid.height, size // grid.width
    corners = {(0, 0), (0, grid.width - 1), (grid.height - 1, 0), (grid.height // 2 - 1, grid.width // 2)}
    for row, column in sorted((max(0, row), column) for row, column in corners):
        changed = pixels.clone()
        changed[..., row * height : (row + 1) * height, column * width : (column + 1) * width] ^= 255
        moved = (encoder(changed)[0] - plain).norm(dim=-1)  # (N,)
        expected = row * grid.width + column
        if moved[expected] < moved.max() / 2:  # where a convolution looks across borders, a neighbour may change more
            raise Violation(
                f"changes patch {int(moved.argmax())} most where pixels of row {row}, column {column} of its "
                f"{grid.height} x {grid.width} grid change; in reading order that is patch {expected}: is the grid "
                "transposed, or are prefix tokens in front?"
            )


@check("vision_encoder")
def blocks_are_its_parts(subject: Subject) -> None:
    """lists in `blocks` parts of its own, with weights: they are compiled and checkpointed one by one."""
    encoder = tiny(subject)
    require_blocks(encoder, lambda: encoder(given_to(subject, encoder)))


@check("vision_encoder")
def blocks_compile(subject: Subject) -> None:
    """has blocks that compile without graph breaks, for any number of pictures."""
    encoder = tiny(subject)
    given = [given_to(subject, encoder, batch) for batch in (2, 3)]
    require_compiled(subject, encoder, list(encoder.blocks), given)
