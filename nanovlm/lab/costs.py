"""What a variant's runs took, and how that compares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

from nanovlm.blueprint import Recipe, choices_of
from nanovlm.errors import NanoVLMError
from nanovlm.experiment import Experiment, parse_experiment
from nanovlm.flops import Cost, Work
from nanovlm.lab.comparison import Costs
from nanovlm.lab.results import Result
from nanovlm.planning import check_lengths
from nanovlm.plugins import Registries, load_plugins
from nanovlm.recorded_plugins import of_run
from nanovlm.training.run import Run

SAME_FLOPS, SAME_TIME = 0.01, 0.1  # differences up to this share are none: FLOPs are counted, times fluctuate


@dataclass(frozen=True)
class Size:
    """A variant's model, as the ``meta`` device has it."""

    parameters: int
    image_tokens: int
    cost: Cost


def costs_of(groups: Mapping[str, Sequence[Result]]) -> tuple[dict[str, Costs], list[str]]:
    """The costs of each variant; and what is to be said of them."""
    registries = cache(lambda files: load_plugins(files))
    costs, notes = {}, []
    for variant, runs in groups.items():
        size = None
        try:
            experiment = parse_experiment(runs[0].experiment)
            size = _size(experiment, runs[0], registries(tuple(Run(runs[0].folder, "").plugin_files)))
            notes += [f"{variant}: {note}" for note in _thawing(experiment)]
        except NanoVLMError as error:
            notes.append(f"{variant}: its parameters, image tokens and FLOPs are not known: {error}")
        costs[variant] = _costs(runs, size)
    return costs, notes


def _size(experiment: Experiment, run: Result, registries: Registries) -> Size:
    of_run(run.folder, run.provenance).check(choices_of(experiment), registries)
    model = check_lengths(Recipe.of(experiment, registries, resolve=False))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Size(parameters, model.num_image_tokens, Cost.of(model, experiment.training.trained_roles))


def _thawing(experiment: Experiment) -> list[str]:
    """Components that were not trained from the first step on."""
    training = experiment.training
    return [
        f"its {role} was frozen up to step {step}, and counts as trained from the first on"
        for role, step in training.frozen_until_step
        if step and role in training.trained_roles
    ]


def _costs(runs: Sequence[Result], size: Size | None) -> Costs:
    def middle(of: Callable[[dict[str, Any]], Any]) -> Any:
        """The median over the runs; None where one does not know it."""
        values = [of(run.summary) for run in runs]
        return None if None in values else median(values)

    def whole(key: str) -> int | None:
        value = middle(lambda summary: summary.get(key))
        return None if value is None else round(value)

    def flops(summary: dict[str, Any]) -> float | None:
        work = _work(summary)
        if size is None or work is None or not summary["samples"]:
            return None
        return size.cost.of_work(work) / summary["samples"]

    skipped = [run.summary["skipped"] for run in runs if "skipped" in run.summary]
    return Costs(
        parameters=size.parameters if size else None,
        image_tokens=size.image_tokens if size else None,
        flops_per_sample=middle(flops),
        samples=whole("samples"),
        samples_per_second=middle(lambda summary: summary.get("samples_per_second")),
        peak_memory_bytes=whole("peak_memory_bytes"),
        wall_seconds=middle(lambda summary: summary.get("wall_seconds")),
        skipped_samples=max((sum(counts.values()) for counts in skipped), default=None),
    )


def _work(summary: Mapping[str, Any]) -> Work | None:
    """None where another version of nanovlm counted it in other words, or not at all."""
    work = summary.get("work")
    return Work(**work) if isinstance(work, dict) and work.keys() == set(Work._fields) else None


@dataclass(frozen=True)
class Savings:
    """A variant's costs as shares of the baseline's; None where that is not known, or means nothing.

    flops, speed: of a sample; samples: how many of them
    """

    flops: float | None = None
    speed: float | None = None
    samples: float | None = None

    @classmethod
    def of(cls, variant: Costs, baseline: Costs, speeds: bool) -> Savings:
        """``speeds``: whether they can be compared (see ``measured_alike`` and ``apart``)."""
        return cls(
            _ratio(variant.flops_per_sample, baseline.flops_per_sample),
            _ratio(variant.samples_per_second, baseline.samples_per_second) if speeds else None,
            _ratio(variant.samples, baseline.samples),
        )

    @property
    def in_words(self) -> list[str]:
        """The savings, as far as there are any to speak of."""
        words = []
        same_length = self.samples is not None and abs(self.samples - 1) <= SAME_FLOPS
        if self.samples is not None and not same_length:
            words.append(f"{_share(self.samples)} samples")
        if self.flops is not None and abs(self.flops - 1) > SAME_FLOPS:
            words.append(f"{_share(self.flops)} FLOPs" + ("" if same_length else " a sample"))
        if self.speed is not None and abs(self.speed - 1) > SAME_TIME:
            words.append(f"{self.speed:.2g} x the speed" if self.speed < 10 else f"{self.speed:.0f} x the speed")
        return words

    @property
    def verdict(self) -> str:
        """``cheaper``, ``dearer``, or nothing where both are as dear, or nobody knows; of the whole training."""
        samples = self.samples if self.samples is not None else 1.0
        flops = _direction(self.flops and self.flops * samples, SAME_FLOPS)
        time = _direction(samples / self.speed if self.speed else None, SAME_TIME)
        if flops * time < 0:
            return "cheaper in FLOPs, dearer in time" if flops < 0 else "dearer in FLOPs, cheaper in time"
        return {-1: "cheaper", 0: "", 1: "dearer"}[flops or time]


def measured_alike(runs: Sequence[Result]) -> bool:
    """Whether the speeds of these runs can be compared: one kind of hardware, one precision, as many ranks."""
    return len({measured_on(run) for run in runs}) == 1 and None not in measured_on(runs[0])


def apart(some: Sequence[Result], others: Sequence[Result]) -> bool:
    """Whether all of these runs were faster than all of the others, or slower; else the machine was busy with more."""
    ours, theirs = ([run.summary.get("samples_per_second", math.nan) for run in runs] for runs in (some, others))
    if any(map(math.isnan, ours + theirs)):
        return False
    return max(ours) < min(theirs) or max(theirs) < min(ours)


def measured_on(run: Result) -> tuple[Any, ...]:
    hardware = run.provenance.get("hardware", {}).get("label")
    return hardware, run.summary.get("precision"), run.summary.get("ranks")


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _share(ratio: float) -> str:
    """``38 % fewer``, ``2.6 x as many``."""
    if ratio >= 2:
        return f"{ratio:.2g} x as many" if ratio < 10 else f"{ratio:.0f} x as many"
    percent = abs(ratio - 1) * 100
    if ratio < 0.001:
        return "more than 99.9 % fewer"
    number = f"{percent:.0f}" if percent >= 1.5 and ratio >= 0.015 else f"{percent:.1f}"
    return f"{number} % {'fewer' if ratio < 1 else 'more'}"


def _direction(ratio: float | None, tolerance: float) -> int:
    """-1 less, 1 more, 0 as much."""
    if ratio is None or abs(ratio - 1) <= tolerance:
        return 0
    return -1 if ratio < 1 else 1
