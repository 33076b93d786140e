"""Whether runs of one seed differ in nothing but their settings: the same samples, initial weights, code and versions.

They are paired by construction: the order of the samples is a pure function of the data and the seed, and each
component draws its initial weights from a generator of its own. What each run recorded of itself shows that it is so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from nanovlm.blueprint import ROLES
from nanovlm.lab.diff import ABSENT, edition, plugins, recorded, shown, unrecorded
from nanovlm.lab.results import Result
from nanovlm.recorded_plugins import resumptions
from nanovlm.training.resume import flat

CHOOSES_DATA = ("data.train.", "data.validation.share", "data.validation.limit", "data.seed")
SETTINGS = 3  # that one sentence names


class Finding(NamedTuple):
    """Something that differs. ``unpairs``: else it is only told, and accuracies can be compared all the same."""

    text: str
    unpairs: bool = True


@dataclass(frozen=True)
class Pair:
    """A run, and the one that it is compared with."""

    run: Result
    base: Result

    def records(self, key: str) -> tuple[Any, Any] | None:
        """What both have in their provenance; None where one of them has nothing, which is told once and elsewhere."""
        mine, theirs = recorded(self.run, key), recorded(self.base, key)
        return None if mine is None or theirs is None else (mine, theirs)

    def differ(self, key: str) -> bool:
        found = self.records(key)
        return found is not None and found[0] != found[1]

    def of_summary(self, key: str) -> tuple[Any, Any]:
        return self.run.summary.get(key), self.base.summary.get(key)

    def settings(self, *prefixes: str) -> str:
        """The settings that differ, in words; of many, the first few."""
        mine, theirs = dict(flat(self.run.experiment)), dict(flat(self.base.experiment))
        keys = [key for key in {**mine, **theirs} if key.startswith(prefixes)]
        values = [(key, mine.get(key, ABSENT), theirs.get(key, ABSENT)) for key in keys]
        told = [f"{key} is {shown(here)} against {shown(there)}" for key, here, there in values if here != there]
        return ", ".join(told[:SETTINGS] + ([f"and {len(told) - SETTINGS} more"] if len(told) > SETTINGS else []))


def unpaired(variants: Mapping[str, Sequence[Result]], baseline: str) -> list[str]:
    """What differs from the baseline's run of the same seed that should not, in sentences; none means paired.

    Not told here: settings, for they are what is compared, and what ``notes`` tells.
    """
    return _grouped(variants, baseline, unpairs=True)


def notes(variants: Mapping[str, Sequence[Result]], baseline: str) -> list[str]:
    """What else differs and leaves runs paired: how long they are, and on which hardware, so that speeds say little."""
    return _grouped(variants, baseline, unpairs=False)


def _grouped(variants: Mapping[str, Sequence[Result]], baseline: str, unpairs: bool) -> list[str]:
    """Equal findings as one sentence: ``factor=1 and factor=4, seeds 0 and 1: ...``."""
    places: dict[str, dict[str, list[int]]] = {}  # of each text, the seeds by variant
    for variant, seed, finding in _findings(variants, baseline):
        if finding.unpairs == unpairs:
            places.setdefault(finding.text, {}).setdefault(variant, []).append(seed)
    sentences = []
    for text, seeds_of in places.items():
        for seeds in dict.fromkeys(map(tuple, seeds_of.values())):
            names = [variant for variant, found in seeds_of.items() if tuple(found) == seeds]
            numbers = f"{'seed' if len(seeds) == 1 else 'seeds'} {_listed(map(str, seeds))}"
            sentences.append(f"{_listed(names)}, {numbers}: {text}")
    return sentences


def _findings(variants: Mapping[str, Sequence[Result]], baseline: str) -> Iterator[tuple[str, int, Finding]]:
    """Each with the variant and the seed that it is about."""
    bases = {run.seed: run for run in variants[baseline]}
    for variant, runs in variants.items():
        for run in sorted(runs, key=lambda run: run.seed):
            found = [*_gaps(run), *_resumed(run)]
            if run.seed not in bases:
                found.append(Finding("the baseline has no run of it"))
            elif variant != baseline:
                found += [finding for check in CHECKS for finding in check(Pair(run, bases[run.seed]))]
            yield from ((variant, run.seed, finding) for finding in found)
        for seed in sorted(bases.keys() - {run.seed for run in runs}):
            yield variant, seed, Finding("there is no run of it, and the baseline has one")


def _gaps(run: Result) -> Iterator[Finding]:
    if missing := unrecorded(run):
        what = f"does not hold {_listed(missing)}" if run.provenance else "is missing or empty"
        yield Finding(f"its provenance.json {what}, so this cannot be compared")


def _resumed(run: Result) -> Iterator[Finding]:
    """What became of a run's code and versions on the way."""
    before = run
    for record in resumptions(run.provenance):
        after = replace(run, provenance=run.provenance | record)
        for check in (_code, _versions, _plugins, _hardware):
            for finding in check(Pair(after, before)):
                yield finding._replace(text=f"since it was resumed after step {record.get('step')}: {finding.text}")
        before = after


def _data(pair: Pair) -> Iterator[Finding]:
    """The samples and their order; with equal ones, how many of them."""
    settings = pair.settings(*CHOOSES_DATA)
    why = f"as the experiments ask: {settings}" if settings else "though the experiments ask for the same"
    if pair.differ("data"):
        what = "" if settings else " (other samples, or other turns and pictures under the same ids)"
        yield Finding(f"the training data differ, {why}{what}")
    elif pair.differ("data_order"):
        yield Finding(f"the training data are the same, but come in another order, {why}")
    elif pair.records("data") and pair.records("data_order"):
        yield from _length(pair)


def _length(pair: Pair) -> Iterator[Finding]:
    same = "the same samples in the same order"
    mine, theirs = (run.experiment["training"]["samples_per_step"] for run in (pair.run, pair.base))
    if mine != theirs:
        yield Finding(f"{same}, but {mine:,} of them a step against {theirs:,}", unpairs=False)
    used = [samples or 0 for samples in pair.of_summary("samples")]
    skipped = [sum((reasons or {}).values()) for reasons in pair.of_summary("skipped")]
    drawn = [samples + left_out for samples, left_out in zip(used, skipped, strict=True)]
    if drawn[0] != drawn[1]:
        yield Finding(f"{same}, but {drawn[0]:,} of them against {drawn[1]:,}", unpairs=False)
    elif skipped[0] != skipped[1]:
        yield Finding(f"{same}, but {skipped[0]:,} of them were skipped against {skipped[1]:,}")


def _initial_weights(pair: Pair) -> Iterator[Finding]:
    """Of each component that the settings leave alone; a projector's shapes are also its neighbours'."""
    if not (found := pair.records("initial_weights")):
        return
    mine, theirs = found
    touched = {role for role in ROLES if pair.run.experiment.get(role) != pair.base.experiment.get(role)}
    if touched:
        touched.add("projector")
    for role in ROLES:
        if role not in touched and mine.get(role) != theirs.get(role):
            yield Finding(f"the initial weights of the {role} differ, though the experiments ask for the same")


def _code(pair: Pair) -> Iterator[Finding]:
    """nanovlm's own; plugins have hashes of their own."""
    mine, theirs = (_state(recorded(run, "git") or {}) for run in (pair.run, pair.base))
    if pair.differ("source"):
        what = f"though both are of {mine}" if mine == theirs else f"{mine} against {theirs}"
        yield Finding(f"the code of nanovlm differs, {what}")
    elif pair.records("source") and (gits := pair.records("git")) and gits[0].get("commit") != gits[1].get("commit"):
        yield Finding(f"{mine} against {theirs}, in which the code of nanovlm is the same", unpairs=False)


def _state(git: dict[str, Any]) -> str:
    if not git.get("commit"):
        return "an unknown commit"
    return f"commit {shown(git['commit'])}" + (" with uncommitted changes" if git.get("changed") else "")


def _versions(pair: Pair) -> Iterator[Finding]:
    mine, theirs = pair.records("versions") or ({}, {})
    packages = [package for package in {**mine, **theirs} if mine.get(package) != theirs.get(package)]
    if packages:
        told = (f"{name} {mine.get(name, ABSENT)} against {theirs.get(name, ABSENT)}" for name in packages)
        yield Finding(f"the versions of libraries differ: {', '.join(told)}")


def _plugins(pair: Pair) -> Iterator[Finding]:
    """Those of both; and a component of one name that comes from another plugin. Others were chosen by the settings."""
    mine, theirs = plugins(pair.run), plugins(pair.base)
    for module in mine:
        if module in theirs and edition(mine[module]) != edition(theirs[module]):
            yield Finding(f"the plugin {module} differs: {edition(mine[module])} against {edition(theirs[module])}")
    here, there = ({place: module for module in found for place in _places(found[module])} for found in (mine, theirs))
    for place in here:
        if place in there and here[place] != there[place] and not pair.settings(f"{place}.name"):
            yield Finding(f"the {place} comes from another plugin: {here[place]} against {there[place]}")


def _places(plugin: dict[str, Any]) -> list[str]:
    """Where in the experiment it is used."""
    return [str(place) for place in plugin.get("used_for") or []]


def _hardware(pair: Pair) -> Iterator[Finding]:
    mine, theirs = (found.get("label") for found in pair.records("hardware") or ({}, {}))
    if mine != theirs:
        yield Finding(f"other hardware, so speeds are not comparable: {mine} against {theirs}", unpairs=False)


def _execution(pair: Pair) -> Iterator[Finding]:
    mine, theirs = pair.of_summary("ranks")
    if mine != theirs:
        text = f"another number of processes, so speeds are not comparable: {mine} against {theirs}"
        yield Finding(text, unpairs=False)
    mine, theirs = pair.of_summary("precision")
    if mine != theirs and not pair.settings("training.precision"):
        yield Finding(f"the precision differs, though the experiments ask for the same: {mine} against {theirs}")


CHECKS: tuple[Callable[[Pair], Iterator[Finding]], ...] = (
    _data, _initial_weights, _code, _versions, _plugins, _hardware, _execution,
)  # fmt: skip


def _listed(words: Iterable[str]) -> str:
    """``a, b and c``."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
