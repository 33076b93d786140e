"""What several runs share: the same questions and the same held-out samples, in one order."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nanovlm.data.origins import Losses
from nanovlm.errors import ConfigError
from nanovlm.evaluation.evaluator import Item
from nanovlm.lab.results import Result

Groups = Mapping[str, Sequence[Result]]
"""Runs by variant."""
Question = tuple[str, str, str, int]
"""A question's id, its text and its answer, and how often these came up before."""
Targets = dict[tuple[str, str], int]
"""How many targets each held-out sample has, by its origin and id."""


@dataclass(frozen=True)
class Asked:
    """A benchmark's items of all runs: ``items[variant][seed][i]`` answers ``questions[i]``."""

    benchmark: str
    questions: tuple[Question, ...]
    items: dict[str, dict[int, list[Item]]]

    def scores(self, variant: str, seeds: Iterable[int], places: Iterable[int] | None = None) -> list[list[float]]:
        """(S, I): by seed and question, all of them or those at some ``places``."""
        chosen = list(range(len(self.questions)) if places is None else places)
        return [[self.items[variant][seed][i].score for i in chosen] for seed in seeds]

    def categories(self, variant: str) -> dict[str, list[int]]:
        """The places of the questions of each category, and of each ``category/subcategory`` below it."""
        found: dict[str, list[int]] = {}
        for i, item in enumerate(next(iter(self.items[variant].values()))):
            if item.category:
                found.setdefault(item.category, []).append(i)
            if item.subcategory:
                found.setdefault(f"{item.category}/{item.subcategory}", []).append(i)
        return dict(sorted(found.items()))


def by_question(items: Iterable[Item]) -> dict[Question, Item]:
    """The second time that a question comes up it is another one."""
    seen = Counter[tuple[str, str, str]]()
    found = {}
    for item in items:
        key = item.id, item.question, item.answer
        found[*key, seen[key]] = item
        seen[key] += 1
    return found


def share_questions(benchmark: str, groups: Groups, common: bool) -> Asked:
    """Raises ConfigError where the runs were asked different questions, unless those in ``common`` are enough."""
    asked = {variant: {run.seed: by_question(run.items[benchmark]) for run in runs} for variant, runs in groups.items()}
    everywhere = [questions for runs in asked.values() for questions in runs.values()]
    shared = set.intersection(*(set(questions) for questions in everywhere))
    if not shared or not (common or all(len(questions) == len(shared) for questions in everywhere)):
        raise ConfigError(_different(benchmark, groups, len(shared)))
    order = tuple(question for question in everywhere[0] if question in shared)
    items = {
        variant: {seed: [questions[question] for question in order] for seed, questions in runs.items()}
        for variant, runs in asked.items()
    }
    return Asked(benchmark, order, items)


def _different(benchmark: str, groups: Groups, shared: int) -> str:
    """How many questions each variant was asked; each run, where those of one variant disagree."""
    counts: dict[str, int] = {}
    for variant, runs in groups.items():
        sets = {frozenset(by_question(run.items[benchmark])): run for run in runs}
        for questions, run in sets.items():
            counts[variant if len(sets) == 1 else str(run.folder)] = len(questions)
    (first, count), *others = counts.items()
    words = ", ".join([f"{first} was asked {count:,} questions of {benchmark}", *(f"{n} {c:,}" for n, c in others)])
    if not shared:
        return f"{words}; they have none in common, so this benchmark cannot be compared"
    return f"{words}; they have {shared:,} in common; --common compares these"


@dataclass(frozen=True)
class HeldOut:
    """The losses of the variants that held out the baseline's samples.

    targets: of each sample
    sums: ``sums[variant][seed][i]``, over a sample's targets
    notes: which variants are left out, and why
    """

    targets: list[int]
    sums: dict[str, dict[int, list[float]]]
    notes: list[str]

    def losses(self, variant: str, seeds: Iterable[int]) -> list[list[float]]:
        """(S, I)."""
        return [self.sums[variant][seed] for seed in seeds]


def share_held_out(groups: Groups, baseline: str) -> HeldOut:
    """Samples without a target say nothing. Where the baseline has none to compare with, nobody has."""
    reference = _targets(groups[baseline][0].losses)
    samples = sorted(reference)
    found = HeldOut([reference[sample] for sample in samples], {}, [])
    for variant in [baseline, *(variant for variant in groups if variant != baseline)]:
        runs = groups[variant]
        reasons = {_obstacle(run, reference) for run in runs} - {""}
        if reasons:
            found.notes.append(
                f"{variant}: its validation loss is left out, because it {' and '.join(sorted(reasons))}"
            )
        elif reference and (variant == baseline or baseline in found.sums):
            found.sums[variant] = {run.seed: [run.losses[sample][0] for sample in samples] for run in runs}
    return found


def _targets(losses: Losses) -> Targets:
    return {sample: count for sample, (_, count) in losses.items() if count}


def _obstacle(run: Result, reference: Targets) -> str:
    """Why a run's losses cannot be compared; nothing where they can, or where there are none at all."""
    targets = _targets(run.losses)
    if not targets and "validation_loss" in run.summary:
        return "was not kept by sample"
    if not all(math.isfinite(loss) for loss, _ in run.losses.values()):
        return "is no finite number for some samples"
    if targets.keys() != reference.keys():
        same = f"{len(targets.keys() & reference.keys()):,} of {len(targets):,} are the baseline's"
        return f"is of other held-out samples ({same})"
    return "" if targets == reference else "is of other tokens (another tokenizer, template or ...)"
