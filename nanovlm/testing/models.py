"""Tiny model components, what they are given, and what they give."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nanovlm.attention import Segments
from nanovlm.borrowed_decoder import stirred
from nanovlm.components import PatchGrid
from nanovlm.seeding import seeded
from nanovlm.testing.checks import Subject, Violation

MODELS = ("vision_encoder", "projector", "language_decoder")
GRID = PatchGrid(4, 4, 16)  # what a projector's `Config.tiny()` is built for
TEXT_DIM = 24
LENGTHS = (7, 1, 20, 3)  # of a row's samples, in tokens
SHOWN = 4  # of a list of names


def context(subject: Subject, grid: PatchGrid = GRID) -> dict[str, Any]:
    """What a component of this kind is built with besides its config."""
    return {"grid": grid, "text_dim": TEXT_DIM} if subject.kind == "projector" else {}


def tiny(subject: Subject, seed: int = 0, grid: PatchGrid = GRID) -> Any:
    """One from ``Config.tiny()``."""
    model = subject.build(seed, **context(subject, grid))
    if not isinstance(model, nn.Module):
        raise Violation("is no nn.Module: derive it from torch.nn.Module, or from the class of its kind in nanovlm")
    return model


def tiny_on_meta(subject: Subject, grid: PatchGrid = GRID) -> Any:
    with torch.device("meta"):
        return tiny(subject, grid=grid)


@contextmanager
def stirred_tiny(subject: Subject) -> Iterator[Any]:
    """A tiny one in eval mode, of which no weights are all alike: behind a branch that begins at zero nothing shows."""
    model = tiny(subject).eval()
    with seeded("stirred"), stirred(model):  # dropout within the block is the seed's
        yield model


def given_to(subject: Subject, model: Any, batch: int = 2, grid: PatchGrid = GRID) -> Tensor:
    """Random pixels (B, 3, H, W) uint8, patches (B, N, C), or the token ids (T,) of a row: always the same ones."""
    generator = torch.Generator().manual_seed(0)
    if subject.kind == "vision_encoder":
        size = model.image.size
        return torch.randint(256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
    if subject.kind == "projector":
        return torch.randn(batch, grid.height * grid.width, grid.dim, generator=generator)
    config: Any = subject.config
    return torch.randint(min(200, config.vocab_size), (sum(LENGTHS),), generator=generator)


def output_of(subject: Subject, model: Any, given: Tensor) -> Tensor:
    """Patches (B, N, C), image tokens (B, M, D), or logits (T, V)."""
    if subject.kind != "language_decoder":
        if not isinstance(found := model(given), Tensor):
            raise Violation(f"gives {type(found).__name__} from `forward`, where one tensor is expected")
        return found
    segments = Segments.of(LENGTHS).map(lambda tensor: tensor.to(given.device))
    return model.logits(model(model.embed(given), segments))


def require_gradients(model: nn.Module, output: Tensor, when: str = "") -> None:
    """Violation unless every parameter that is to be trained gets a finite gradient. ``when``: " in bf16", say."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return
    if not output.requires_grad:
        raise Violation(f"gives what no gradient goes through{when}: is it computed under torch.no_grad, or detached?")
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.device)
    model.zero_grad()
    (output.float() * weights).sum().backward()
    wanted = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    if idle := [name for name, gradient in wanted.items() if gradient is None]:
        raise Violation(
            f"gives no gradient to {few(idle)}{when}: use it in `forward`, without detaching, or leave it out"
        )
    if broken := [name for name, gradient in wanted.items() if gradient is not None and not gradient.isfinite().all()]:
        raise Violation(f"gives gradients that are no finite numbers to {few(broken)}{when}")


def off_by(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to that of what is expected; infinite where something is no number."""
    found, expected = found.detach().float().cpu(), expected.detach().float().cpu()
    off = (found - expected).norm() / expected.norm().clamp_min(torch.finfo(torch.float32).tiny)
    return float(off.nan_to_num(float("inf")))


def few(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def random_states() -> dict[str, Any]:
    """Those of the global generators, to be compared."""
    import numpy

    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": repr(numpy.random.get_state()),
        "Python": random.getstate(),
    }
