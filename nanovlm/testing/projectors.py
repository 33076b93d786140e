"""What every projector must do."""

from __future__ import annotations

import re

import torch

from nanovlm.components import PatchGrid
from nanovlm.errors import ConfigError
from nanovlm.testing.checks import Subject, Violation, check, doing
from nanovlm.testing.compiling import require_compiled
from nanovlm.testing.models import GRID, TEXT_DIM, given_to, output_of, require_gradients, tiny, tiny_on_meta

GRIDS = (GRID, PatchGrid(8, 8, 12), PatchGrid(16, 16, 8), PatchGrid(6, 4, 5))
ODD_GRIDS = (PatchGrid(5, 7, 8), PatchGrid(9, 9, 8), PatchGrid(3, 11, 8))


@check("projector")
def tokens_as_promised(subject: Subject) -> None:
    """gives as many image tokens as `num_tokens` says, each as wide as the text, on several grids."""
    for grid in GRIDS:
        try:
            projector = tiny(subject, grid=grid)
        except ConfigError as error:
            if grid == GRID:
                raise Violation(
                    f"refuses the {grid.height} x {grid.width} grid ({error}): `Config.tiny()` is to suit it"
                ) from None
            continue
        _require_tokens(subject, projector, grid)


def _require_tokens(subject: Subject, projector: torch.nn.Module, grid: PatchGrid) -> None:
    if not isinstance(count := getattr(projector, "num_tokens", None), int) or count < 1:
        raise Violation(f"has num_tokens={count!r}: set self.num_tokens in __init__, an int of at least 1")
    for batch in (1, 3):
        patches = given_to(subject, projector, batch, grid)
        tokens = output_of(subject, projector, patches)
        shape = tuple(tokens.shape)
        if shape != (expected := (batch, count, TEXT_DIM)):
            raise Violation(
                f"gives {shape} for patches {tuple(patches.shape)} of a {grid.height} x {grid.width} grid; with "
                f"num_tokens={count} and text_dim={TEXT_DIM} that should be {expected}"
            )
        require_gradients(projector, tokens, f" on a {grid.height} x {grid.width} grid")
    if (planned := tiny_on_meta(subject, grid).num_tokens) != count:
        raise Violation(f"has num_tokens={planned} on `meta`, and {count} for real: count without looking at weights")


@check("projector")
def unsuited_grids_are_refused(subject: Subject) -> None:
    """refuses a grid that does not suit it when it is built, by a ConfigError that lists what would."""
    for grid in ODD_GRIDS:
        size = f"{grid.height} x {grid.width}"
        try:
            projector = tiny(subject, grid=grid)
        except ConfigError as error:
            _require_advice(subject, grid, str(error))
            continue
        except Exception as error:
            raise Violation(
                f"raises {type(error).__name__} ({error}) when it is built for a {size} grid: raise a ConfigError that "
                "lists what would suit it, as `grid.blocks(factor)` does"
            ) from None
        with doing(f"on the {size} grid that it was built for (refuse it in __init__ by a ConfigError)", subject):
            projector(given_to(subject, projector, grid=grid))


def _require_advice(subject: Subject, grid: PatchGrid, words: str) -> None:
    """A refusal names the option or the grid; that of a number gives others that would suit."""
    options = subject.config.model_dump()
    named = [option for option in options if re.search(rf"\b{option}\b", words)]
    numbers = {int(number) for number in re.findall(r"\d+", words)}
    if not named and not {grid.height, grid.width} <= numbers:
        raise Violation(f"refuses the {grid.height} x {grid.width} grid by {words!r}: name the option and the grid")
    counts = {option: options[option] for option in named if isinstance(options[option], int)}
    said = {grid.height, grid.width, grid.dim, grid.height * grid.width, *counts.values()}
    if counts and not numbers - said:
        option, value = next(iter(counts.items()))
        raise Violation(
            f"refuses {option}={value!r} for the {grid.height} x {grid.width} grid by {words!r}: list "
            "the values that would suit it"
        )


@check("projector")
def compiles(subject: Subject) -> None:
    """compiles without graph breaks."""
    projector = tiny(subject)
    given = [given_to(subject, projector, batch) for batch in (2, 3)]
    require_compiled(subject, projector, [projector], given)
