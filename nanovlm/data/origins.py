"""What each dataset of a mixture gave: samples to train on, and held-out losses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nanovlm.data.packing import PackedRow

if TYPE_CHECKING:
    from nanovlm.data.loader import Step

Loss = tuple[float, int]
"""A sum over targets, and their number."""


def dataset_of(origin: str) -> str:
    """``data.train.0`` of ``data.train.0, subset 'x'``: datasets are few, but there may be hundreds of subsets."""
    return origin.partition(",")[0]


def samples_by_origin(tally: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """How many samples of each origin were used (see ``Step.tally``); 0 where all that came up were skipped."""
    used = Counter[str]()
    for (origin, reason), count in tally.items():
        used[origin] += 0 if reason else count
    return dict(sorted(used.items()))


def samples_by_dataset(tally: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """The same with the subsets of a dataset together."""
    used = Counter[str]()
    for origin, count in samples_by_origin(tally).items():
        used[dataset_of(origin)] += count
    return dict(used)


def given(step: Step, names: Iterable[str]) -> dict[str, float]:
    """How many samples of a step each dataset gave, by the name of its metric: ``given/data.train.0``."""
    used = samples_by_dataset(step.tally)
    return {name: float(used.get(name.removeprefix("given/"), 0)) for name in names}


def losses_by_origin(row: PackedRow, losses: Tensor) -> dict[str, Loss]:
    """A row's losses (number of targets,), added up for each origin of its samples."""
    samples = row.segments.sample_ids[row.target_slots].cpu()  # (number of targets,): filling has no target
    sums = torch.zeros(len(row.origins), dtype=torch.float64).index_add_(0, samples, losses.detach().cpu().double())
    counts = samples.bincount(minlength=len(row.origins))
    found: dict[str, Loss] = {}
    for origin, loss, count in zip(row.origins, sums.tolist(), counts.tolist(), strict=True):
        found = added(found, {origin: (loss, count)})
    return found


def added(some: Mapping[str, Loss], more: Mapping[str, Loss]) -> dict[str, Loss]:
    """The losses of several rows (or ranks) together."""
    total = dict(some)
    for origin, (loss, count) in more.items():
        before = total.get(origin, (0.0, 0))
        total[origin] = before[0] + loss, before[1] + count
    return total


def mean_by_dataset(losses: Mapping[str, Loss]) -> dict[str, float]:
    """The mean loss over the targets of each dataset that has any."""
    total: dict[str, Loss] = {}
    for origin, loss in losses.items():
        total = added(total, {dataset_of(origin): loss})
    return {dataset: loss / count for dataset, (loss, count) in sorted(total.items()) if count}
