"""The contracts: what the core asks of a vision encoder, a projector, a language decoder and a tracker.

That of a dataset is in ``data/dataset.py``.

Letters for shapes, here and everywhere: ``B`` images, ``N`` patches, ``M`` image tokens an image, ``T`` tokens in a
packed row, ``S`` samples in it, ``C`` vision width, ``D`` text width, ``V`` vocabulary.

A component is a class with a nested ``Config``. It is built in three separate steps, so that every model can be
planned on the ``meta`` device without weights, network or GPU:

1. ``Config.resolved()`` reads at most a ``config.json`` and returns the full architecture;
2. ``__init__`` reads nothing and builds the modules with random weights;
3. ``load_pretrained()`` reads the weights that ``config.weights`` names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from nanovlm.adapters import Lora
from nanovlm.errors import ConfigError
from nanovlm.schema import NAMES
from nanovlm.schema import Schema as Schema
from nanovlm.schema import parse as parse

if TYPE_CHECKING:
    from nanovlm.attention import Segments
    from nanovlm.evaluation.evaluator import Answered
    from nanovlm.training.run import Run


class ComponentConfig(Schema):
    """The options of one component. Defaults build the real thing; ``tiny()`` builds it in milliseconds, for tests."""

    known_sizes: ClassVar[dict[str, int]] = {}
    """Bytes to download, at most, for well-known hub ids; `nanovlm plan` calls other sizes unknown."""

    def resolved(self) -> Self:
        """The same options with everything filled in that a checkpoint's ``config.json`` decides."""
        return self

    @classmethod
    def tiny(cls) -> Self:
        return cls()

    def fill_in(self, architecture: dict[str, Any], source: str = "") -> Self:
        """These options with a checkpoint's ``architecture``; a ConfigError where the user asked for something else.

        source: what the checkpoint is called, by default ``weights``.
        """
        source = source or getattr(self, "weights", "")
        for key in self.model_fields_set & architecture.keys():
            if getattr(self, key) != architecture[key]:
                raise ConfigError(
                    f"{key}={getattr(self, key)!r} contradicts the checkpoint {source!r}, "
                    f"which has {key}={architecture[key]!r}: leave the option out, or use weights: random"
                )
        return self.model_copy(update=architecture)


Resample = Literal["nearest", "bilinear", "bicubic", "lanczos"]  # Pillow's filters


@dataclass(frozen=True)
class ImageSpec:
    """How pictures reach an encoder: resized to ``size`` x ``size`` pixels with Pillow's filter ``resample``."""

    size: int
    resample: Resample = "bicubic"
    longest_edge: int = 0
    """Before that, the longer side to so many pixels, in proportion (Idefics3); 0: straight to the square."""


@dataclass(frozen=True)
class PatchGrid:
    """An encoder's output: ``height * width`` = N patches in reading order, each ``dim`` = C numbers."""

    height: int
    width: int
    dim: int

    def blocks(self, factor: int) -> tuple[int, int, int, int]:
        """(H/r, r, W/r, r), to ``unflatten`` N patches into r x r blocks; a ConfigError lists the factors that work."""
        if self.height % factor or self.width % factor:
            suited = [r for r in range(1, self.height + 1) if self.height % r == 0 == self.width % r]
            raise ConfigError(
                f"factor={factor} must divide the {self.height} x {self.width} patch grid; "
                f"{', '.join(map(str, suited))} do"
            )
        return self.height // factor, factor, self.width // factor, factor


class Component(nn.Module):
    """What the three kinds of model component share."""

    Config: ClassVar[type[ComponentConfig]]

    def load_pretrained(self) -> None:
        """Load the weights that the config names, strictly; with random weights there is nothing to do."""

    def weights_loaded(self) -> None:
        """Called after weights of any origin, a saved model too, were read into it: settle what depends on them."""


class VisionEncoder(Component):
    """``(config)``: pixels (B, 3, H, W) uint8 -> patches (B, N, C). Owns its preprocessing, normalisation included."""

    image: ImageSpec
    grid: PatchGrid
    blocks: Iterable[nn.Module]
    """The layers, in order: compiled and checkpointed one by one."""


class LanguageDecoder(Component):
    """``(config)``: the language model, with everything that concerns text in its config (see ``TextConfig``)."""

    dim: int
    """D, the width of a token's embedding."""
    max_positions: int
    """The longest sample that the decoder takes, in tokens."""
    varlen: bool = False
    """Whether it reads segments without groups: its only attention is `nanovlm.attention`, by heads that suit flash."""
    blocks: Iterable[nn.Module]

    def embed(self, token_ids: Tensor) -> Tensor:
        """(T,) int64 -> (T, D)."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        raise NotImplementedError

    def new_cache(self, samples: int, max_tokens: int) -> Any:
        """Room for the keys and values of ``samples`` sequences of up to ``max_tokens``; ``forward`` fills it."""
        raise NotImplementedError

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, segments: Segments, cache: Any = None) -> Tensor:
            """(T, D) -> (T, D); attention is causal and never crosses a segment's border."""


ImageFormat = Literal["plain", "idefics3", "nanovlm"]  # see data/image_format.py


class TextConfig(ComponentConfig):
    """The text side of every language decoder's config."""

    weights: str = "random"
    """A hub id, a folder, or `random`."""
    tokenizer: str = ""
    """A hub id, a folder, or `bytes` (every byte of UTF-8 is a token); by default where the weights are."""
    template: str = "question_answer"
    """How a conversation becomes text: `question_answer`, `tokenizer` (its own chat template), or a Jinja file."""
    extra_tokens: Annotated[list[str], NAMES] = []
    """Special tokens such as `<box>`; a checkpoint gets a new row for each (drawn at random, and with `lora` kept)."""
    image_format: ImageFormat = "plain"
    """What stands around a picture: `plain`, nothing; `idefics3` (with its resizing) or `nanovlm`, their markers."""
    lora: Lora | None = None
    """Adapters that are trained in the place of the decoder's own weights, for example `{rank: 8}`; or nothing."""

    @property
    def tokenizer_source(self) -> str:
        return self.tokenizer or ("bytes" if self.weights == "random" else self.weights)


class Tracker:
    """``(config, run)``: watches one run, on the trackers that its experiment names. Every moment is optional."""

    Config: ClassVar[type[ComponentConfig]]

    def __init__(self, config: ComponentConfig, run: Run) -> None:
        self.config, self.run = config, run

    def started(self, facts: dict[str, Any]) -> None:
        """Once, before the first step: what the run is about to do (``total_steps``, ``parameters``, ...)."""

    def step_finished(self, metrics: dict[str, float]) -> None:
        """After each step, one step late, so that the device is never waited for."""

    def evaluated(self, results: dict[str, Any], answered: Sequence[Answered] = ()) -> None:
        """After each validation or benchmark; of a benchmark with its samples, and what the model said about them."""

    def finished(self, summary: dict[str, Any]) -> None:
        """Once at the end, with what ``summary.json`` holds."""

    def failed(self, error: BaseException) -> None:
        """Once, in the place of ``finished``, where an error or an interrupt ends the run: leave everything tidy."""


def device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
