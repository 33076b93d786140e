"""What each dataset of a mixture gave: samples to train on, and held-out losses."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from nanovlm.data.packing import PackedRow
from nanovlm.errors import DataError
from nanovlm.files import write_whole

if TYPE_CHECKING:
    from nanovlm.data.loader import Step

Loss = tuple[float, int]
"""A sum over targets, and their number."""
Losses = dict[tuple[str, str], Loss]
"""By a sample's origin and id."""
Key = TypeVar("Key")


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


def losses_by_sample(row: PackedRow, losses: Tensor) -> Losses:
    """A row's losses (number of targets,), added up for each of its samples."""
    samples = row.segments.sample_ids[row.target_slots].cpu()  # (number of targets,): filling has no target
    sums = torch.zeros(len(row.origins), dtype=torch.float64).index_add_(0, samples, losses.detach().cpu().double())
    counts = samples.bincount(minlength=len(row.origins))
    found: Losses = {}
    for origin, name, loss, count in zip(row.origins, row.ids, sums.tolist(), counts.tolist(), strict=True):
        found = added(found, {(origin, name): (loss, count)})
    return found


def added(some: Mapping[Key, Loss], more: Mapping[Key, Loss]) -> dict[Key, Loss]:
    """The losses of several rows (or ranks) together."""
    total = dict(some)
    for key, (loss, count) in more.items():
        before = total.get(key, (0.0, 0))
        total[key] = before[0] + loss, before[1] + count
    return total


def mean_by_dataset(losses: Losses) -> dict[str, float]:
    """The mean loss over the targets of each dataset that has any."""
    total: dict[str, Loss] = {}
    for (origin, _), loss in losses.items():
        total = added(total, {dataset_of(origin): loss})
    return {dataset: loss / count for dataset, (loss, count) in sorted(total.items()) if count}


def write_losses(losses: Losses, file: Path) -> None:
    """One JSON line a held-out sample."""
    lines = (
        json.dumps({"origin": origin, "id": name, "loss": loss, "targets": count}, ensure_ascii=False)
        for (origin, name), (loss, count) in sorted(losses.items())
    )
    write_whole(file, "".join(f"{line}\n" for line in lines))


def read_losses(file: Path) -> Losses:
    """What ``write_losses`` wrote; none if there is no such file."""
    if not file.is_file():
        return {}
    try:
        with file.open(encoding="utf-8") as found:  # an id may hold what str.splitlines takes for a line's end
            lines = [json.loads(line) for line in found]
        return {(line["origin"], line["id"]): (float(line["loss"]), int(line["targets"])) for line in lines}
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{file} is damaged: remove it, and go on without what it held") from None
