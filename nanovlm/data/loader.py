"""The steps of a run: their samples prepared and packed, by number.

What a step holds depends on its number alone, so the position of a run is the number of its steps, and neither the
number of workers nor a skipped sample shifts anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from nanovlm.blueprint import located
from nanovlm.components import ImageSpec
from nanovlm.data.conversation import TextFormat
from nanovlm.data.dataset import Sample
from nanovlm.data.filling import Filling
from nanovlm.data.images import stack_images
from nanovlm.data.mixture import Member, Mixture
from nanovlm.data.packing import Example, PackedRow, pack
from nanovlm.data.ranks import ALONE, Ranks
from nanovlm.errors import SkipSample
from nanovlm.experiment import Data


@dataclass(frozen=True)
class Preparation:
    """From a sample to an example: the text's format, the picture's size, and the limits of the experiment."""

    text: TextFormat
    image: ImageSpec
    limits: Data

    def __call__(self, sample: Sample) -> Example:
        """Raises SkipSample. What is skipped depends on the text and the pictures, never on encoder or projector."""
        limits = self.limits
        if len(sample.images) > limits.max_images:
            raise SkipSample("too many pictures")
        tokens = self.text.conversation(sample.turns, len(sample.images), limits.turns, limits.max_text_tokens)
        return Example(tokens, stack_images(sample.images[: len(tokens.image_at)], self.image))


@dataclass
class Step:
    """One step's samples in packed rows, and what became of each of its samples.

    skipped: how many samples were left out, by reason
    first_skipped: which one was the first, its id by reason
    tally: how many samples of each origin were left out for which reason, or used (no reason)
    left_out: how many turns the datasets left out of the samples that are used, by reason
    position: of a stream, where the next step begins, as JSON can keep it (see ``Steps.resumed``)
    """

    rows: list[PackedRow]
    skipped: Counter[str] = field(default_factory=Counter)
    first_skipped: dict[str, str] = field(default_factory=dict)
    tally: Counter[tuple[str, str]] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    position: Any = None

    @property
    def num_samples(self) -> int:
        return sum(row.num_samples for row in self.rows)

    def map(self, move: Callable[[Tensor], Any]) -> Step:
        """The same with ``move`` applied to every tensor."""
        return replace(self, rows=[row.map(move) for row in self.rows])

    def pin_memory(self) -> Step:
        return self.map(lambda tensor: torch.as_tensor(tensor).pin_memory())


@dataclass(frozen=True)
class Packing:
    """How examples become rows: M image tokens a picture, the bounds of a row, and what it is filled up to."""

    num_image_tokens: int
    tokens_per_row: int
    images_per_row: int
    filling: Filling | None = None

    def step(self, members: Iterable[Member], prepare: Preparation) -> Step:
        """Read, prepare and pack samples; one that cannot be used makes the step smaller and is counted.

        Any other error that the user can put right says which dataset, and which subset, the sample is of.
        """
        step, examples = Step([]), []
        for member in members:
            reason = ""
            try:
                with located(member.origin):
                    sample = member.read()
                examples.append(replace(prepare(sample), origin=member.origin, id=sample.id))
                step.left_out.update(sample.left_out)
            except SkipSample as skip:
                reason = skip.reason
                step.skipped[reason] += 1
                step.first_skipped.setdefault(reason, member.id())
            step.tally[member.origin, reason] += 1
        step.rows = self.rows(examples)
        return step

    def rows(self, examples: Iterable[Example]) -> list[PackedRow]:
        return pack(examples, self.num_image_tokens, self.tokens_per_row, self.images_per_row, self.filling)


class Steps:
    """The steps of a run by number: step ``n`` is the same whoever asks for it. A rank prepares its share of each.

    ``tasks`` is iterated in the trainer's process; what it gives is handed to a worker, which makes a step of it.
    """

    first = 0  # step that `tasks` begins with

    def __init__(
        self, mixture: Mixture, prepare: Preparation, packing: Packing, samples_per_step: int, samples: int,
        ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self.mixture, self.prepare, self.packing = mixture, prepare, packing
        self.samples_per_step, self.samples, self.ranks = samples_per_step, samples, ranks

    def __len__(self) -> int:
        return -(-self.samples // self.samples_per_step)

    def resumed(self, step: int, position: Any = None) -> Self:
        """The same, with ``tasks`` from a step on; ``position`` is what the step before it said."""
        resumed = copy(self)
        resumed.first = step
        return resumed

    def tasks(self) -> Iterable[Any]:
        return range(self.first, len(self))

    def __getitem__(self, step: int) -> Step:
        positions = self.ranks.positions(step, self.samples_per_step, self.samples)
        members = (self.mixture.member(*self.mixture.at(position)) for position in positions)
        return self.packing.step(members, self.prepare)


class HeldOut:
    """The validation samples, in steps of the same size, of which a rank prepares its share."""

    def __init__(
        self, mixture: Mixture, prepare: Preparation, packing: Packing, samples_per_step: int, ranks: Ranks = ALONE
    ) -> None:
        self.mixture, self.prepare, self.packing = mixture, prepare, packing
        self.size, self.ranks = samples_per_step, ranks

    def __len__(self) -> int:
        return -(-len(self.mixture.held_out) // self.size)

    def tasks(self) -> Iterable[Any]:
        return range(len(self))

    def __getitem__(self, step: int) -> Step:
        chosen = self.mixture.held_out[step * self.size : (step + 1) * self.size]
        return self.packing.step((self.mixture.member(*place) for place in self.ranks.share(chosen)), self.prepare)
