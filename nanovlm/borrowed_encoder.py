"""A vision transformer borrowed from another library: its options, and how its patches are told from all else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from nanovlm.components import ComponentConfig, ImageSpec, Resample, VisionEncoder
from nanovlm.errors import ConfigError, summary

Triple = Annotated[list[float], Field(min_length=3, max_length=3)]


class BorrowedEncoderConfig(ComponentConfig):
    weights: str = "random"
    """A hub id, a folder, or `random`."""
    image_size: Annotated[int, Field(ge=0)] = 0
    """Pixels along each side of the (square) picture; 0 is the checkpoint's own (its preprocessor's, if any)."""
    resample: Resample = "bicubic"
    """Pillow's filter for resizing pictures; by default the checkpoint's."""
    mean: Triple = [0.485, 0.456, 0.406]
    """Of red, green and blue in [0, 1], subtracted from a picture; by default the checkpoint's, else ImageNet's."""
    std: Triple = [0.229, 0.224, 0.225]
    """What a picture is divided by, after that; by default the checkpoint's, else ImageNet's."""

    def with_usual(self, picture: dict[str, Any], **architecture: Any) -> Self:
        """These options with a checkpoint's ``architecture``, and its usual ``picture`` where nothing else is asked."""
        asked = {key for key in self.model_fields_set if key != "image_size" or self.image_size}
        return self.model_copy(update={key: value for key, value in picture.items() if key not in asked} | architecture)


class BorrowedEncoder(VisionEncoder):
    """Normalises pictures, and gives the last N of the library's tokens. A subclass sets ``grid`` and ``blocks``."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: BorrowedEncoderConfig, size: int) -> None:
        super().__init__()
        self.image = ImageSpec(size, config.resample)
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:  # (B, 3, H, W) uint8
        tokens = self.tokens((pixels / 255 - self.mean) / self.std)
        return tokens[:, -self.grid.height * self.grid.width :]  # (B, N, C), without the prefix tokens

    def tokens(self, pictures: Tensor) -> Tensor:
        """The library's output for normalised pictures (B, 3, H, W): (B, N, C), or with other tokens before these."""
        raise NotImplementedError


def patches_along(kind: str, size: int, patch: int) -> int:
    """The side of the grid; ConfigError unless whole patches fill the picture."""
    if size % patch:
        near = max(patch, round(size / patch) * patch)
        raise ConfigError(f"image_size={size} must be a multiple of {kind}'s patch_size={patch}, for example {near}")
    return size // patch


def trial(kind: str, draft: nn.Module, size: int, run: Callable[[Tensor], Tensor]) -> tuple[Tensor, tuple[str, ...]]:
    """What an encoder on ``meta`` gives for two pictures (2, ..., C), and the parameters that this does not depend on.

    Two, because some encoders take all pictures for one long sequence. ``run`` calls ``draft``, which is left without
    these parameters: whether it still runs is tried too. ConfigError where either fails.
    """
    pictures = torch.empty(2, 3, size, size, device="meta")
    try:
        with torch.enable_grad():
            output = run(pictures)
            unused = unused_parameters(draft, output)
    except Exception as error:  # whatever a model that is not for pictures stumbles over
        raise ConfigError(
            f"{kind} does not take pictures of {size} x {size} pixels: {summary(error)}\n"
            "  Its own size may work (leave image_size out); an encoder of videos or of several inputs does not"
        ) from None
    prune(draft, unused)
    try:
        run(pictures)
    except Exception as error:  # whatever the code around a part that is not there stumbles over
        raise ConfigError(
            f"{kind} does not run without the parameters that its patches do not depend on, such as {unused[0]}: "
            f"{summary(error)}; use another encoder"
        ) from None
    return output.detach(), unused


def unused_parameters(model: nn.Module, output: Tensor) -> tuple[str, ...]:
    """The names of the parameters that a model's ``output`` does not depend on (they may be on ``meta``)."""
    output.sum().backward()
    return tuple(sorted(name for name, p in model.named_parameters() if p.requires_grad and p.grad is None))


def prune(model: nn.Module, names: Iterable[str]) -> None:
    """Take these parameters out of a model: one by one, or with the whole submodule that they make up."""
    names = set(names)
    _prune(model, {id(parameter) for name, parameter in model.named_parameters() if name in names})


def _prune(module: nn.Module, unused: set[int]) -> None:
    for name, parameter in list(module.named_parameters(recurse=False)):
        if id(parameter) in unused:
            setattr(module, name, None)
    for name, child in list(module.named_children()):
        own = {id(parameter) for parameter in child.parameters()}
        if own and own <= unused:
            setattr(module, name, Unused())
        else:
            _prune(child, unused)


class Unused(nn.Module):
    """Stands where a submodule was that is still called, on what nobody reads: gives its first input back."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return next(iter((*args, *kwargs.values())), None)


def check_tokens(kind: str, tokens: Tensor, side: int, prefix: int) -> None:
    """ConfigError unless what an encoder gave for two pictures are a grid's patches, after ``prefix`` other tokens.

    tokens: (2, N or prefix + N, C) with N = side * side.
    """
    shape, patches = tuple(tokens.shape), side * side
    if tokens.ndim != 3:
        raise ConfigError(
            f"{kind} gives {shape}, a feature map and not one token a patch (B, N, C): "
            "use an encoder that keeps its patches to the end (a plain vision transformer)"
        )
    if tokens.shape[0] != 2:
        raise ConfigError(
            f"{kind} gives {shape} for two pictures, one sequence and not one a picture (B, N, C): "
            "use an encoder of single pictures"
        )
    found = tokens.shape[1]
    if found < patches:
        raise ConfigError(
            f"{kind} gives {found} tokens for {side} x {side} = {patches} patches: "
            "it drops patches (a masked autoencoder) or joins them (a hierarchical encoder), so they are no grid"
        )
    if found not in (patches, patches + prefix):
        raise ConfigError(
            f"{kind} gives {found} tokens for {side} x {side} = {patches} patches, but only {prefix} are known to "
            "stand before them: which ones are patches is unclear"
        )
