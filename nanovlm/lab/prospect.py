"""What an ablation will take: every variant is planned, and all that cannot work is said at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from nanovlm.blueprint import Recipe
from nanovlm.errors import ConfigError, NanoVLMError, join
from nanovlm.experiment import Training
from nanovlm.flops import peak_flops
from nanovlm.hardware import measured_peak
from nanovlm.lab.ablation import Ablation
from nanovlm.lab.problems import said_once
from nanovlm.merging import ABLATE, BUDGETS
from nanovlm.places import value_at
from nanovlm.planning import Plan, plan
from nanovlm.plugins import Registries
from nanovlm.training.precision import Precision, choose_device
from nanovlm.unread import in_vain, unread

# The share of its peak that a device reaches in training (MFU): 37 % of two CPU cores at the quickstart's size, 82 % at
# the baseline's (experiments/results/*-step-cpu.json). A guess for GPUs, which a small model does not fill.
UTILISATION = 0.37
STARTUP_SECONDS = 15  # of a run: imports, and the last evaluations of a small model


@dataclass(frozen=True)
class Prospect:
    """plans: by variant, the baseline first, each for the ablation's first seed.

    run_seconds: of one run, by variant, on this machine. It is a rough estimate: every sample counts as one of the
        greatest length, and the machine as idle. None where it cannot be said: of a budget in epochs, or of a device
        that is not here.
    seeds: how many runs each variant has
    """

    plans: dict[str, Plan]
    run_seconds: dict[str, float] | None
    seeds: int

    @property
    def seconds(self) -> float | None:
        """Of all runs, one after another."""
        return self.time_of([*self.plans] * self.seeds)

    def time_of(self, variants: Iterable[str]) -> float | None:
        """Seconds of one run of each of these, one after another."""
        return None if self.run_seconds is None else sum(self.run_seconds[variant] for variant in variants)

    def to_json(self) -> dict[str, Any]:
        return {"variants": {name: each.to_json() for name, each in self.plans.items()}, "seconds": self.seconds}


def plan_ablation(ablation: Ablation, registries: Registries) -> Prospect:
    """Plan every variant once, whatever the number of seeds. Raises ConfigError with all problems of all variants."""
    plans: dict[str, Plan] = {}
    recipes: dict[str, Recipe] = {}
    problems: dict[str, list[str]] = {}
    idle: list[dict[str, None]] = []  # by variant, what was written and it does not read
    for variant in ablation.variants:
        try:
            recipes[variant.name] = Recipe.of(experiment := variant.experiment(ablation.seeds[0]), registries)
            idle.append(dict.fromkeys(in_vain(variant.tree, experiment)))
            plans[variant.name] = plan(recipes[variant.name])
        except NanoVLMError as error:
            problems[variant.name] = [str(error)]
    found = said_once(problems, [variant.name for variant in ablation.variants])
    if len(idle) == len(ablation.variants):
        found += [words for words in idle[0] if all(words in each for each in idle)]
    found += _same(recipes)
    if ablation.baseline in plans:
        found += _unmatched(ablation, recipes[ablation.baseline].experiment.training, plans[ablation.baseline])
    if found:
        raise ConfigError(join(found))
    return Prospect(plans, _run_seconds(recipes, plans), len(ablation.seeds))


def _same(recipes: Mapping[str, Recipe]) -> list[str]:
    """That variants come to the same experiment, once every default is written out, and what nothing reads is not."""
    groups: list[tuple[dict[str, Any], list[str]]] = []
    for name, recipe in recipes.items():
        content = _read_of(recipe)
        alike = next((names for other, names in groups if other == content), None)
        if alike is None:
            groups.append((content, [name]))
        else:
            alike.append(name)
    return [
        f"{', '.join(names)} come to the same experiment{_why([recipes[name] for name in names])}; "
        "leave all but one of them out"
        for _, names in groups
        if len(names) > 1
    ]


def _why(recipes: Sequence[Recipe]) -> str:
    """What variants that are the same differ in all the same, and why nothing reads that."""
    dumps = [recipe.dump() for recipe in recipes]
    reasons = ""
    for setting in unread(recipes[0].experiment):
        first, *others = (value_at(dump, setting.key.split(".")) for dump in dumps)
        if any(other != first for other in others):
            reasons += f" (nothing reads {setting.key}, because {setting.reason})"
    return reasons


def _read_of(recipe: Recipe) -> dict[str, Any]:
    """What a run of it reads, with every default written out."""
    content = recipe.dump() | {"name": ""}
    for setting in unread(recipe.experiment):
        *above, key = setting.key.split(".")
        section = content
        for each in above:
            section = section[each]
        del section[key]
    return content


def _unmatched(ablation: Ablation, training: Training, planned: Plan) -> list[str]:
    """That FLOPs cannot be held equal by another budget, and which one would be the baseline's."""
    if ablation.match != "flops" or training.flops:
        return []
    budget = next(budget for budget in BUDGETS if getattr(training, budget))
    problem = f"{ABLATE}.match=flops: the budget must be training.flops, in the place of training.{budget}"
    if flops := _flops(training, planned):
        amount = getattr(training, budget)
        problem += f"; for {ablation.baseline} training.{budget}={amount} comes to at most {flops:.2g}"
    return [problem]


def _flops(training: Training, planned: Plan) -> float | None:
    """What a run costs at most; None where the number of samples is not known."""
    samples = training.samples or training.steps * training.samples_per_step
    return training.flops or samples * planned.flops_per_sample or None


def _run_seconds(recipes: Mapping[str, Recipe], plans: Mapping[str, Plan]) -> dict[str, float] | None:
    found = {}
    for name, planned in plans.items():
        experiment = recipes[name].experiment
        flops, peak = _flops(experiment.training, planned), _peak(experiment.device, experiment.training.precision)
        if not flops or not peak:
            return None
        found[name] = STARTUP_SECONDS + flops / (UTILISATION * peak)
    return found


@lru_cache
def _peak(choice: str, precision: str) -> float | None:
    """FLOPs a second that the device can do; None if it is not on this machine."""
    try:
        device = choose_device(choice)
    except ConfigError:
        return None  # it may be where the runs will be
    if device.type == "cpu":
        return measured_peak(device, torch.float32)
    chosen = Precision(precision, device)
    return peak_flops(device, chosen.name) or measured_peak(device, chosen.dtype)
