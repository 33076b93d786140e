"""Which sample stands at which position of a run: what is held out, and the order of the rest.

The order is a pure function of (seed, epoch, index), so that it needs no state: position ``n`` is the same sample
whoever asks for it, and after an interruption.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import lru_cache, partial
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from nanovlm.data.content import content, spread
from nanovlm.data.dataset import Dataset, Sample
from nanovlm.data.ranks import ALONE, Ranks
from nanovlm.errors import DataError
from nanovlm.experiment import Data
from nanovlm.seeding import derived_seed, generator


class Member(NamedTuple):
    """A sample of a step: where it comes from, in words, what reads it, and what gives its id without reading it."""

    origin: str
    read: Callable[[], Sample]
    id: Callable[[], str]


class Pool(NamedTuple):
    """Training samples of one dataset that an epoch passes over equally often."""

    dataset: int
    weight: float
    indices: Tensor


class Mixture:
    """The training samples of one or several datasets: what is held out, and the order of the rest."""

    def __init__(self, datasets: Sequence[Dataset], weights: Sequence[float], data: Data, seed: int) -> None:
        self.datasets, self.weights, self.seed = datasets, weights, seed
        self.train: list[Tensor] = []  # for each dataset, the indices that are trained on
        self.held_out: list[tuple[int, int]] = []  # (dataset, index)
        self.subsets = [dataset.subsets() for dataset in datasets]
        self.ends = [list(accumulate(subset.size for subset in subsets)) for subsets in self.subsets]
        self.pools: list[Pool] = []
        for d, dataset in enumerate(datasets):
            held = [is_held_out(dataset.id(i), data.validation.share, data.seed) for i in range(len(dataset))]
            self.train.append(torch.tensor([i for i, out in enumerate(held) if not out], dtype=torch.int64))
            self.held_out += [(d, i) for i, out in enumerate(held) if out]
            if not len(self.train[-1]):
                raise DataError(
                    f"data.train.{d}: all of its {len(dataset)} samples are held out for validation; "
                    "lower data.validation.share"
                )
            self.pools += self._pools(d)
        limit = data.validation.limit
        if limit and len(self.held_out) > limit:  # not the first ones: they may all be of one kind
            chosen = torch.randperm(len(self.held_out), generator=generator(data.seed, "validation"))[:limit]
            self.held_out = [self.held_out[i] for i in sorted(chosen.tolist())]
        self.epoch_size = sum(round(pool.weight * len(pool.indices)) for pool in self.pools)

    def _pools(self, d: int) -> list[Pool]:
        """A dataset's training samples by the weight of their subset; those of one weight are drawn from together."""
        weights = [subset.weight for subset in self.subsets[d]]
        subset_of = torch.bucketize(self.train[d], torch.tensor(self.ends[d]), right=True)
        pools = []
        for weight in dict.fromkeys(weights):
            chosen = [n for n, other in enumerate(weights) if other == weight]
            indices = self.train[d][torch.isin(subset_of, torch.tensor(chosen))]
            pool = Pool(d, self.weights[d] * weight, indices)
            if len(indices) and not round(pool.weight * len(indices)):
                names = ", ".join(self.subsets[d][n].name for n in chosen)
                among = f" ({names})" if names else ""
                raise DataError(
                    f"data.train.{d}.weight={pool.weight} of {len(indices)} samples{among} is not one; raise it, "
                    f"or leave the {'subset' if names else 'dataset'} out"
                )
            pools.append(pool)
        return [pool for pool in pools if len(pool.indices)]

    def member(self, d: int, index: int) -> Member:
        """The sample at an index of a dataset, not yet read."""
        subset = self.subsets[d][bisect_right(self.ends[d], index)].name
        return Member(
            origin(d, subset), partial(self.datasets[d].__getitem__, index), partial(self.datasets[d].id, index)
        )

    def at(self, position: int) -> tuple[int, int]:
        """(dataset, index) of the sample at a position in the whole run, over all epochs."""
        epoch, place = divmod(position, self.epoch_size)
        d, index = _order(self, epoch)[place].tolist()
        return d, index

    def order(self, epoch: int) -> Tensor:
        """(epoch_size, 2): dataset and index of each of an epoch's samples; whole passes first, then a random rest."""
        draws = [generator(self.seed, epoch, d) for d in range(len(self.datasets))]
        parts = []
        for d, weight, indices in self.pools:
            size = round(weight * len(indices))
            shuffled = indices[torch.randperm(len(indices), generator=draws[d])]
            chosen = shuffled.repeat(-(-size // len(indices)))[:size]
            parts.append(torch.stack((torch.full_like(chosen, d), chosen), dim=1))
        everything = torch.cat(parts)
        return everything[torch.randperm(len(everything), generator=generator(self.seed, epoch))]

    def fingerprint(self) -> Iterator[bytes]:
        """The samples, whatever the run's seed: the ids of all, and the content of up to 256, evenly spaced.

        Held-out samples are among them. An edit under an old id that is none of the 256 is not seen.
        """
        trained = [torch.stack((torch.full_like(indices, d), indices), dim=1) for d, indices in enumerate(self.train)]
        held_out = torch.tensor(self.held_out, dtype=torch.int64).view(-1, 2)
        for places in (*trained, held_out):
            yield "\0".join(self.datasets[d].id(index) for d, index in places.tolist()).encode()
        # Files that a dataset opens when it is first read must not be open already when worker processes fork.
        apart = copy(self)
        apart.datasets = [copy(dataset) for dataset in self.datasets]
        everything = torch.cat((*trained, held_out))  # (samples, 2): dataset and index
        for d, index in everything[spread(len(everything))].tolist():
            yield from content(apart.member(d, index))

    def fingerprint_of_order(self, ranks: Ranks = ALONE) -> bytes:
        """Which of the samples comes when, for any number of ranks: the seed, and the first epoch."""
        return f"{self.seed}:".encode() + self.order(0).to(torch.int64).numpy().tobytes()


@lru_cache(maxsize=2)
def _order(mixture: Mixture, epoch: int) -> Tensor:
    return mixture.order(epoch)


def is_held_out(sample_id: str, share: float, seed: int) -> bool:
    """Whether a sample belongs to the validation share: by a hash of its id, whatever else the dataset holds."""
    return derived_seed(seed, "validation", sample_id) < share * 2**63


def origin(dataset: int, subset: str) -> str:
    """Where a sample comes from, as it is told when nothing from there can be used."""
    return f"data.train.{dataset}" + (f", subset {subset!r}" if subset else "")
