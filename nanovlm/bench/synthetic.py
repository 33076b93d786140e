"""Samples made of nothing, with the lengths of real ones: no hub, no datasets, and for steps no tokenizer.

Of The Cauldron's samples, as nanoVLM's recipe cuts them, a picture's text has 41 tokens on average, 20 of them
supervised. Here lengths are log-normal with that mean, below the experiment's own limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from statistics import NormalDist, fmean

import torch

from nanovlm.data.conversation import Tokens
from nanovlm.data.loader import HeldOut, Packing, Step, Steps
from nanovlm.data.packing import Example
from nanovlm.model import VisionLanguageModel
from nanovlm.seeding import generator

MEAN_TOKENS = 41  # of a sample's text
SUPERVISED = 20 / 41  # the share of them that the model learns to say
SPREAD = 0.5  # standard deviation of the logarithm of the length
FEWEST_TOKENS = 4
MOST_OF_LIMIT = 0.8  # the mean under a limit so low that the usual one is out of reach
POOL = 4  # different steps, held in memory


class Lengths:
    """Text lengths: log-normal, those beyond ``limit`` left out as in training, and with the mean they should have."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        wanted, low, high = min(MEAN_TOKENS, MOST_OF_LIMIT * limit), 0.0, math.log(limit) + 2
        for _ in range(40):  # what is left out lowers the mean, so the curve has to stand further to the right
            self.normal = NormalDist((low + high) / 2, SPREAD)
            if fmean(self.at((i + 0.5) / 200) for i in range(200)) < wanted:
                low = self.normal.mean
            else:
                high = self.normal.mean

    def at(self, quantile: float) -> float:
        """The length that this share of all samples stays below."""
        return math.exp(self.normal.inv_cdf(quantile * self.normal.cdf(math.log(self.limit))))

    def draw(self, random: torch.Generator) -> int:
        quantile = float(torch.rand((), generator=random, dtype=torch.float64).clamp(1e-9, 1 - 1e-9))
        return min(self.limit, max(FEWEST_TOKENS, round(self.at(quantile))))


def num_supervised(length: int) -> int:
    return max(1, round(SUPERVISED * length))


lengths_below = cache(Lengths)


def draw_examples(model: VisionLanguageModel, limit: int, *seed: object) -> Iterator[Example]:
    """Samples of one random picture and at most ``limit`` random tokens, without end."""
    random, lengths = generator("synthetic", *seed), lengths_below(limit)
    size, vocabulary = model.vision_encoder.image.size, model.blueprint.language_decoder.config.vocab_size
    while True:
        length = lengths.draw(random)
        ids = torch.randint(vocabulary, (length,), generator=random).tolist()
        question = length - num_supervised(length)
        tokens = Tokens(ids, [i >= question for i in range(length)], [0])
        yield Example(tokens, torch.randint(256, (1, 3, size, size), dtype=torch.uint8, generator=random))


def draw_step(
    model: VisionLanguageModel, packing: Packing, limit: int, samples: int, *seed: object, pinned: bool = False
) -> Step:
    """So many samples, packed; for a GPU in pinned memory, as a loader's own thread would have put them there."""
    drawn = draw_examples(model, limit, *seed)
    step = Step(packing.rows([next(drawn) for _ in range(samples)]))
    return step.pin_memory() if pinned else step


class SyntheticSteps(Steps):
    """A few steps that are held in memory and come up again and again, so that having them costs no time."""

    def __init__(self, pool: Sequence[Step], steps: int) -> None:
        self.pool, self.steps = pool, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Step:
        return self.pool[step % len(self.pool)]


class NothingHeldOut(HeldOut):
    """A benchmark does not validate."""

    def __init__(self) -> None:
        pass

    def __len__(self) -> int:
        return 0
