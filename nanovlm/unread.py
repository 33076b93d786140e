"""Settings that nothing reads: what is written, and changes no run.

A key that no schema knows is an error anyway. This is about keys that are known, and that another setting switches off
(``training.decay`` under a cosine), or that merging dropped (the options of a component that was replaced). In a file
both are usual: it extends another one and switches a thing off, or has everything written out, as a run's own file
has. So they are an error where nobody can have meant it, and a remark of ``nanovlm plan --explain`` elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanovlm.errors import ConfigError, join
from nanovlm.places import all_dropped, value_at

if TYPE_CHECKING:
    from nanovlm.experiment import Experiment


@dataclass(frozen=True)
class Unread:
    """A setting that nothing reads.

    because: the dotted key of the setting that switches it off
    stands_at: that one's value
    fix: what would have it read, as an override
    """

    key: str
    because: str
    stands_at: Any
    fix: str

    @property
    def reason(self) -> str:
        value = f"{self.stands_at:g}" if isinstance(self.stands_at, float) else self.stands_at
        return f"{self.because} is {value}"


def unread(experiment: Experiment) -> Iterator[Unread]:
    """All that an experiment's other settings switch off, whether it was written or not."""
    training, share = experiment.training, experiment.data.validation.share
    falling = "training.schedule=warmup_stable_decay"
    if training.schedule != falling.partition("=")[2]:
        yield Unread("training.decay", "training.schedule", training.schedule, falling)
    if training.schedule == "constant":
        yield Unread("training.final_learning_rate", "training.schedule", training.schedule, falling)
    if not share:
        for key in ("every", "limit"):
            yield Unread(f"data.validation.{key}", "data.validation.share", share, "data.validation.share=0.01")
    for role, rate in training.learning_rate:
        key = f"training.learning_rate.{role}"
        for setting in ("frozen_until_step", "weight_decay") if not rate else ():
            yield Unread(f"training.{setting}.{role}", key, rate, f"a rate by {key}=...")


def check_read(tree: dict[str, Any], experiment: Experiment) -> None:
    """ConfigError for what was written in vain, and cannot have been meant so.

    That is an override that changes nothing, and a setting that a file gives although what switches it off stands in
    no file: it is a default.

    tree: what ``experiment`` was validated from, with its places
    """
    problems = [*in_vain(tree, experiment), *_dropped_overrides(tree)]
    if problems:
        raise ConfigError(join(problems))


def in_vain(tree: dict[str, Any], experiment: Experiment) -> Iterator[str]:
    """What is to be said of the settings that were written and are not read, as ``check_read`` has it."""
    for setting in unread(experiment):
        value, place = value_at(tree, setting.key.split(".")) or (None, None)
        if not value or not place:  # 0 switches it off itself
            continue
        remedy = f"nothing reads it, because {setting.reason}; leave it out, or set {setting.fix}"
        if place.override.startswith(f"{setting.key}="):
            yield f"{place}: {remedy}"
        elif place.line and not value_at(tree, setting.because.split(".")):
            yield f"{setting.key}={value}: {remedy} ({place})"


def _dropped_overrides(tree: dict[str, Any]) -> Iterator[str]:
    for key, gone in all_dropped(tree):
        if gone.place and gone.place.override:
            yield f"{gone.place}: nothing reads {key}, because {gone.by} drops it; leave one of them out"
