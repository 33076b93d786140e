"""What is held equal between an ablation's variants, so that none of them wins by a larger budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from nanovlm.errors import ConfigError
from nanovlm.experiment import Training
from nanovlm.merging import ABLATE, BUDGETS

Match = Literal["samples", "steps", "flops", "none"]

Tree = dict[str, Any]  # an experiment, not yet validated
LENGTH_OF_AN_EPOCH = ("data.train", "data.validation.share", "data.seed")


def check_budget(match: Match, settings: Iterable[tuple[str, Any]], where: str) -> None:
    """A ConfigError for keys and values of which one sets what is held equal."""
    for key, value in settings if match != "none" else ():
        inside = value if key == "training" and isinstance(value, dict) else ()
        for budget in BUDGETS:
            if key == f"training.{budget}" or budget in inside:
                raise ConfigError(
                    f"{where}: training.{budget} is a budget, and `{ABLATE}.match: {match}` holds the {match} of all "
                    f"variants equal; leave it out, or set {ABLATE}.match=none"
                )


def matched(match: Match, trees: Mapping[str, Tree], baseline: str, changed: Iterable[str]) -> dict[str, Tree]:
    """The variants' experiments by name, with the baseline's budget.

    The budget stands as it is written wherever it gives all variants as much. Where it does not, since an optimizer
    step takes more samples in one than in another, it is counted in what is held equal: so many samples as the baseline
    sees, or so many steps as it takes (the last one may be smaller). Under ``flops`` the budget is ``training.flops``
    (``plan_ablation`` says so, and how many).

    changed: all keys that some variant sets. A budget that cannot be counted so is a ConfigError. Wrong types are left
    to the experiment's schema.
    """
    training = {name: _training(tree) for name, tree in trees.items()}
    budgets = [key for key in BUDGETS if training[baseline].get(key)]
    if match in ("flops", "none") or len(budgets) != 1:
        return dict(trees)
    budget = budgets[0]
    amount, size = training[baseline][budget], training[baseline]["samples_per_step"]
    same_size = all(each["samples_per_step"] == size for each in training.values())
    if budget == "flops":
        raise ConfigError(
            f"{ABLATE}.match={match}: the budget is training.flops, which gives cheaper variants more samples; "
            f"set {ABLATE}.match=flops, or training.{match} in the place of training.flops"
        )
    if budget == "epochs":
        _check_epochs(match, changed, same_size)
    countable = all(isinstance(number, int) and number > 0 for number in (amount, size))
    if budget in (match, "epochs") or same_size or not countable:
        return dict(trees)
    counted = amount * size if match == "samples" else math.ceil(amount / size)
    return {name: tree | {"training": _with_budget(training[name], match, counted)} for name, tree in trees.items()}


def _training(tree: Tree) -> dict[str, Any]:
    """What an experiment says of its training, with the size of a step."""
    written = tree.get("training")
    size = Training.model_fields["samples_per_step"].default
    return {"samples_per_step": size} | (written if isinstance(written, dict) else {})


def _check_epochs(match: Match, changed: Iterable[str], same_size: bool) -> None:
    fix = f"set training.{match} in the place of training.epochs"
    for key in changed:
        if any(overlap(key, part) for part in LENGTH_OF_AN_EPOCH):
            raise ConfigError(f"{ABLATE}.match={match}: how long an epoch is depends on {key}, which is varied; {fix}")
    if match == "steps" and not same_size:
        raise ConfigError(f"{ABLATE}.match=steps: how many steps an epoch takes depends on samples_per_step; {fix}")


def overlap(key: str, other: str) -> bool:
    """Whether one of two dotted keys is the other, or a part of it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _with_budget(training: Mapping[str, Any], budget: str, amount: int) -> Tree:
    return {key: value for key, value in training.items() if key not in BUDGETS} | {budget: amount}
