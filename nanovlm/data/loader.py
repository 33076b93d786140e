"""Which samples belong to which step, prepared and packed.

The order is a pure function of (seed, epoch, index), so the position of a run is the number of its steps, and neither
the number of workers nor a skipped sample shifts anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from nanovlm.components import Dataset, ImageSpec, Sample
from nanovlm.data.conversation import TextFormat
from nanovlm.data.images import stack_images
from nanovlm.data.packing import Example, PackedRow, pack
from nanovlm.errors import DataError, SkipSample
from nanovlm.experiment import Data
from nanovlm.seeding import derived_seed, generator


@dataclass(frozen=True)
class Preparation:
    """From a sample to an example: the text's format, the picture's size, and the limits of the experiment."""

    text: TextFormat
    image: ImageSpec
    limits: Data

    def __call__(self, sample: Sample) -> Example:
        """Raises SkipSample. What is skipped depends on the text and the pictures, never on encoder or projector."""
        if len(sample.images) > self.limits.max_images:
            raise SkipSample("too many pictures")
        tokens = self.text.conversation(
            sample.turns, len(sample.images), self.limits.turns, self.limits.max_text_tokens
        )
        return Example(tokens, stack_images(sample.images[: len(tokens.image_at)], self.image))


class Mixture:
    """The training samples of one or several datasets: what is held out, and the order of the rest."""

    def __init__(self, datasets: Sequence[Dataset], weights: Sequence[float], data: Data, seed: int) -> None:
        self.datasets, self.weights, self.seed = datasets, weights, seed
        self.train: list[Tensor] = []  # for each dataset, the indices that are trained on
        self.held_out: list[tuple[int, int]] = []  # (dataset, index)
        for d, dataset in enumerate(datasets):
            held = [is_held_out(dataset.id(i), data.validation.share, data.seed) for i in range(len(dataset))]
            self.train.append(torch.tensor([i for i, out in enumerate(held) if not out], dtype=torch.int64))
            self.held_out += [(d, i) for i, out in enumerate(held) if out]
            if not len(self.train[-1]):
                raise DataError(
                    f"data.train.{d}: all of its {len(dataset)} samples are held out for validation; "
                    "lower data.validation.share"
                )
            if not round(weights[d] * len(self.train[-1])):
                raise DataError(
                    f"data.train.{d}.weight={weights[d]} of {len(self.train[-1])} samples is not one; raise it, "
                    "or leave the dataset out"
                )
        limit = data.validation.limit
        if limit and len(self.held_out) > limit:  # not the first ones: they may all be of one kind
            chosen = torch.randperm(len(self.held_out), generator=generator(data.seed, "validation"))[:limit]
            self.held_out = [self.held_out[i] for i in sorted(chosen.tolist())]
        self.epoch_size = sum(round(weight * len(indices)) for weight, indices in zip(weights, self.train, strict=True))

    def at(self, position: int) -> tuple[int, int]:
        """(dataset, index) of the sample at a position in the whole run, over all epochs."""
        epoch, place = divmod(position, self.epoch_size)
        d, index = _order(self, epoch)[place].tolist()
        return d, index

    def order(self, epoch: int) -> Tensor:
        """(epoch_size, 2): dataset and index of each of an epoch's samples; whole passes first, then a random rest."""
        parts = []
        for d, (indices, weight) in enumerate(zip(self.train, self.weights, strict=True)):
            size = round(weight * len(indices))
            shuffled = indices[torch.randperm(len(indices), generator=generator(self.seed, epoch, d))]
            chosen = shuffled.repeat(-(-size // len(indices)))[:size]
            parts.append(torch.stack((torch.full_like(chosen, d), chosen), dim=1))
        pool = torch.cat(parts)
        return pool[torch.randperm(len(pool), generator=generator(self.seed, epoch))]


@lru_cache(maxsize=2)
def _order(mixture: Mixture, epoch: int) -> Tensor:
    return mixture.order(epoch)


def is_held_out(sample_id: str, share: float, seed: int) -> bool:
    """Whether a sample belongs to the validation share: by a hash of its id, whatever else the dataset holds."""
    return derived_seed(seed, "validation", sample_id) < share * 2**63


@dataclass
class Step:
    """One step's samples in packed rows, and what was left out of it by reason."""

    rows: list[PackedRow]
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def num_samples(self) -> int:
        return sum(row.num_samples for row in self.rows)

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows)

    def pin_memory(self) -> Step:
        return Step([row.pin_memory() for row in self.rows], self.skipped)


@dataclass(frozen=True)
class Packing:
    """How examples become rows: M image tokens a picture, and the bounds of a row."""

    num_image_tokens: int
    tokens_per_row: int
    images_per_row: int

    def step(self, samples: Iterator[Sample], prepare: Preparation) -> Step:
        """Prepare and pack samples; one that cannot be used makes the step smaller and is counted."""
        examples, skipped = [], Counter[str]()
        while True:
            try:
                examples.append(prepare(next(samples)))
            except StopIteration:
                break
            except SkipSample as skip:
                skipped[skip.reason] += 1
        return Step(pack(examples, self.num_image_tokens, self.tokens_per_row, self.images_per_row), skipped)


class _Samples:
    """Samples by (dataset, index), one after another; a SkipSample in one does not end the iteration."""

    def __init__(self, datasets: Sequence[Dataset], members: Sequence[tuple[int, int]]) -> None:
        self.datasets, self.members = datasets, iter(members)

    def __iter__(self) -> _Samples:
        return self

    def __next__(self) -> Sample:
        d, index = next(self.members)
        return self.datasets[d][index]


class Steps:
    """The steps of a run by number: step ``n`` is the same whoever asks for it."""

    def __init__(
        self, mixture: Mixture, prepare: Preparation, packing: Packing, samples_per_step: int, samples: int
    ) -> None:
        self.mixture, self.prepare, self.packing = mixture, prepare, packing
        self.samples_per_step, self.samples = samples_per_step, samples

    def __len__(self) -> int:
        return -(-self.samples // self.samples_per_step)

    def __getitem__(self, step: int) -> Step:
        first = step * self.samples_per_step
        last = min(first + self.samples_per_step, self.samples)
        return self.packing.step(
            _Samples(self.mixture.datasets, [self.mixture.at(p) for p in range(first, last)]), self.prepare
        )


class HeldOut:
    """The validation samples, in steps of the same size."""

    def __init__(self, mixture: Mixture, prepare: Preparation, packing: Packing, samples_per_step: int) -> None:
        self.mixture, self.prepare, self.packing, self.size = mixture, prepare, packing, samples_per_step

    def __len__(self) -> int:
        return -(-len(self.mixture.held_out) // self.size)

    def __getitem__(self, step: int) -> Step:
        members = self.mixture.held_out[step * self.size : (step + 1) * self.size]
        return self.packing.step(_Samples(self.mixture.datasets, members), self.prepare)
