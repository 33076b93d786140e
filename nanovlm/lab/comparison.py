"""What a comparison of runs says, as data: tables, reports and figures are made from it and from nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from nanovlm.lab.results import Result
from nanovlm.lab.statistics import Difference, Estimate


@dataclass(frozen=True)
class Score:
    """One variant on one benchmark, over its seeds.

    controls: the accuracies under other conditions (``shuffled``, ``no_image``, ``bare_decoder``), means over the seeds
    categories: the accuracy by category; a subcategory goes by ``category/subcategory``
    difference: to the baseline; None for the baseline itself
    p_holm: the difference's p after Holm's correction over all variants of this benchmark
    mcnemar: McNemar's exact p, with a single seed only: it speaks of these two checkpoints
    differing: questions that the baseline answered differently well with any seed; most of them may be chance, and
        only those that changed with most seeds are flips
    sentence: the verdict in words
    flags: what makes the accuracy doubtful, in words: at or under its no-picture score, skipped questions, ...
    """

    accuracy: Estimate
    questions: int
    controls: dict[str, float] = field(default_factory=dict)
    categories: dict[str, Estimate] = field(default_factory=dict)
    difference: Difference | None = None
    p_holm: float | None = None
    mcnemar: float | None = None
    differing: int = 0
    sentence: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Costs:
    """What a variant took; medians over its runs. None where it is not known.

    flops_per_sample: forward and backward, of the samples that were trained on, as an average
    samples_per_second: of training, without evaluations; wall_seconds: of a run, evaluations included
    skipped_samples: of the training data, the most of any run
    """

    parameters: int | None
    image_tokens: int | None
    flops_per_sample: float | None
    samples: int | None
    samples_per_second: float | None
    peak_memory_bytes: int | None
    wall_seconds: float | None
    skipped_samples: int | None


@dataclass(frozen=True)
class VariantResult:
    """All finished runs of one variant.

    changes: its settings that differ from the baseline's, by dotted key; a whole component where its name differs
    scores: by benchmark
    validation_loss: the mean over held-out targets; its difference, p and sentence are as those of a ``Score``
    """

    name: str
    changes: dict[str, object]
    runs: tuple[Result, ...]
    seeds: tuple[int, ...]
    costs: Costs
    scores: dict[str, Score]
    validation_loss: Estimate | None = None
    validation_difference: Difference | None = None
    validation_p_holm: float | None = None
    validation_sentence: str = ""


@dataclass(frozen=True)
class Flip:
    """A question that the baseline and a variant answered differently well.

    by_seed: how much more of it the variant got right, in the ascending order of the seeds that both have, as what both
        said; ``gained`` is the mean, in [-1, 1]
    """

    benchmark: str
    variant: str
    id: str
    question: str
    answer: str
    category: str | None
    baseline_said: tuple[str, ...]
    variant_said: tuple[str, ...]
    by_seed: tuple[float, ...]
    gained: float


@dataclass(frozen=True)
class Unfinished:
    """A run that has no result, and why, in a line; ``log`` says where to read more."""

    variant: str
    seed: int
    state: str
    reason: str = ""
    log: str = ""


@dataclass(frozen=True)
class Comparison:
    """The whole answer. ``variants`` has the baseline first.

    unpaired: what differs between runs of one seed that should not; empty where all is paired
    """

    name: str
    baseline: str
    benchmarks: tuple[str, ...]
    variants: tuple[VariantResult, ...]
    flips: tuple[Flip, ...] = ()
    unpaired: tuple[str, ...] = ()
    unfinished: tuple[Unfinished, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def has_pairs(self) -> bool:
        """Whether any variant has a seed in common with the baseline."""
        base, *rivals = self.variants
        return any(set(base.seeds) & set(rival.seeds) for rival in rivals)

    def to_json(self) -> dict[str, Any]:
        """Everything; a run is its folder's path."""
        whole: dict[str, Any] = plain(self)
        return whole


def plain(value: Any) -> Any:
    """What JSON can hold: a dataclass as a mapping, a number that is not finite as None, and a date in words."""
    if isinstance(value, Result):
        return str(value.folder)
    if is_dataclass(value):
        return {part.name: plain(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
