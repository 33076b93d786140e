"""Ablations: the ``ablate`` section of an experiment file, and the variants that it asks for.

    extends: ../quickstart.yaml
    training: {steps: 300}
    ablate:
      axes: {projector.factor: [1, 2, 4]}
      baseline: {projector.factor: 2}
      seeds: [0, 1, 2]

A file that extends another one's ablation may change single keys of its section: each is replaced as a whole. If it
gives ``axes`` or ``variants`` it asks a question of its own, and inherits no more than ``seeds`` and ``match``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from nanovlm.blueprint import collected
from nanovlm.components import Schema, parse
from nanovlm.errors import ConfigError, join, unknown
from nanovlm.experiment import Experiment, RunName, parse_experiment, read_experiment
from nanovlm.lab.budgets import Match, check_budget, matched, overlap
from nanovlm.lab.grid import Axis, Cell, Grid, check_key
from nanovlm.lab.naming import LONGEST, names
from nanovlm.lab.problems import said_once
from nanovlm.merging import ABLATE, Change, names_first, override, split_override
from nanovlm.places import joined
from nanovlm.shipped import find_ablation

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=,+-]*")  # fit for a folder, and no option of a command
OWN_FILES = ("ablation.yaml", "figures", "report.html", "report.md", "submitit", "summary.json")  # of a sweep's folder


def _words(value: Any) -> Any:
    """YAML's keys need not be texts, and ours must."""
    wrong = [key for key in value if not isinstance(key, str)] if isinstance(value, dict) else []
    if wrong:
        raise ValueError(f"the key {wrong[0]} is no word: put it in quotes")
    return value


def _axis(value: Any) -> Any:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        for name, changes in _words(value).items():
            if not isinstance(changes, dict):
                raise ValueError(
                    f"{name!r} must be a mapping of the dotted keys that it sets, not {changes!r}; "
                    "or write the axis as a list of values"
                )
            _words(changes)
        return value
    raise ValueError(f"an axis is a list of values, or a mapping of names to what each sets, not {value!r}")


def _cell_or_name(value: Any) -> Any:
    if not isinstance(value, str | dict):
        raise ValueError(f"it is one value of each axis, as in {{projector.factor: 2}}, or a name, not {value!r}")
    return _words(value)


Changes = Annotated[dict[str, Any], BeforeValidator(_words)]


class Question(Schema):
    """The ``ablate`` section."""

    axes: Annotated[dict[str, Annotated[Any, BeforeValidator(_axis)]], BeforeValidator(_words)] = {}
    """What is varied, by dotted key: a list of values, or under a name of your own what sets several keys together."""
    variants: Annotated[dict[str, Changes], BeforeValidator(_words)] = {}
    """Single variants by name, beside the axes' grid or without one: the dotted keys that each sets, or none ({})."""
    exclude: list[Changes] = []
    """Cells of the grid to leave out: all those that have every one of an entry's values."""
    baseline: Annotated[Any, BeforeValidator(_cell_or_name)]
    """What the others are compared with: one value of each axis, or the name of a variant."""
    seeds: Annotated[list[int], Field(min_length=1)] = [0, 1, 2]
    """Every variant is trained with each of them. One seed compares two checkpoints, and not two settings."""
    match: Match = "samples"
    """What is held equal: samples seen, optimizer steps, flops spent, or none."""


class Title(Schema):
    """What an ablation is called; its runs go to a folder of this name."""

    name: RunName


@dataclass(frozen=True)
class Variant:
    """One setting of what is varied.

    name: readable, unique within the ablation, fit for a folder
    changes: what its axes, or its own mapping, set, by dotted key
    tree: the merged experiment without ``ablate``, not yet validated
    """

    name: str
    changes: dict[str, Any]
    tree: dict[str, Any]

    def experiment(self, seed: int) -> Experiment:
        """One of its runs, called ``<ablation>-<variant>``; a ConfigError for what no experiment may say."""
        return parse_experiment(joined(self.tree, {"seed": seed}))


@dataclass(frozen=True)
class Ablation:
    """A question: the variants, the baseline first, and the seeds that each is trained with."""

    name: str
    variants: tuple[Variant, ...]
    baseline: str
    seeds: tuple[int, ...]
    match: Match


def load_ablation(file: str | Path, overrides: Sequence[str] = ()) -> Ablation:
    """Read an experiment file with an ``ablate`` section, and apply ``overrides`` (``ablate.seeds=[0]`` is one).

    Raises ConfigError with every problem of the section. What is wrong with a variant is said by ``plan_ablation``.
    """
    tree = read_experiment(find_ablation(file), overrides)
    if ABLATE not in tree:
        raise ConfigError(f"{file}: it asks for one run (it has no `{ABLATE}:`); start it by `nanovlm train {file}`")
    question = parse(Question, tree.pop(ABLATE), where=ABLATE)
    name = parse(Title, {"name": tree.pop("name")}, where="").name
    grid = Grid(tuple(Axis.of(key, given) for key, given in question.axes.items()))
    excluded = _check(question, grid)
    changes = _variants(question, grid, excluded)
    with collected() as problems:
        baseline = ""
        with problems:
            baseline = _baseline(question, grid, changes, excluded)
        if len(changes) < 2:
            with problems:
                only = f"only one variant, {next(iter(changes))}, is left" if changes else "no variant is left"
                raise ConfigError(f"{ABLATE}: {only}; a comparison takes two or more")
    _check_overrides(file, overrides, tree, changes)
    trees = matched(question.match, _apply(tree, changes), baseline, [key for each in changes.values() for key in each])
    ordered = [baseline, *(variant for variant in trees if variant != baseline)]
    variants = tuple(Variant(each, changes[each], joined({"name": f"{name}-{each}"}, trees[each])) for each in ordered)
    return Ablation(name, variants, baseline, tuple(question.seeds), question.match)


def _check(question: Question, grid: Grid) -> list[Cell]:
    """The excluded cells; a ConfigError with all that is wrong with the axes, the variants and the seeds."""
    excluded: list[Cell] = []
    with collected() as problems:
        if not question.axes and not question.variants:
            with problems:
                raise ConfigError(f"{ABLATE}: neither axes nor variants are given, so nothing is varied")
        with problems:
            grid.check()
        for axis in grid.axes:
            where = f"{ABLATE}.axes.{axis.key}"
            with problems:
                axis.check(where)
            with problems:
                check_budget(question.match, axis.settings, where)
        for name, changes in question.variants.items():
            with problems:
                _check_variant(name, changes, question.match)
        for i, entry in enumerate(question.exclude):
            with problems:
                excluded.append(_excluded(grid, entry, f"{ABLATE}.exclude.{i}"))
        if isinstance(question.baseline, dict):
            with problems:
                grid.find_one(question.baseline, f"{ABLATE}.baseline")
        for seed in dict.fromkeys(seed for seed in question.seeds if question.seeds.count(seed) > 1):
            with problems:
                raise ConfigError(f"{ABLATE}.seeds: {seed} stands twice, and would be trained twice alike")
    return excluded


def _check_variant(name: str, changes: Mapping[str, Any], match: Match) -> None:
    where = f"{ABLATE}.variants.{name}"
    with collected() as problems:
        if not NAME.fullmatch(name) or len(name) > LONGEST:
            with problems:
                raise ConfigError(
                    f"{ABLATE}.variants: {name!r} cannot be a folder's name; take up to {LONGEST} letters, digits and "
                    "._=,+- (the first a letter, a digit or _)"
                )
        if name.casefold() in OWN_FILES:
            with problems:
                raise ConfigError(f"{ABLATE}.variants: {name!r} is what a sweep keeps something else under; rename it")
        for key in changes:
            with problems:
                check_key(key, where)
        with problems:
            check_budget(match, changes.items(), where)


def _excluded(grid: Grid, entry: Mapping[str, Any], where: str) -> Cell:
    if not entry:
        raise ConfigError(f"{where}: it names no axis, and would leave nothing")
    return grid.find(entry, where)


def _variants(question: Question, grid: Grid, excluded: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """What each variant changes, by its name; a ConfigError for two of one name."""
    cells = grid.cells(())
    called = zip(names([grid.shown(cell) for cell in cells]), cells, strict=True)  # whatever is excluded
    left = grid.cells(excluded)
    found = {name: grid.changes(cell) for name, cell in called if cell in left}
    folders = {name.casefold(): name for name in found}
    with collected() as problems:
        for name, changes in question.variants.items():
            with problems:
                if other := folders.get(name.casefold()):
                    raise ConfigError(f"{ABLATE}.variants: {name!r} would be in one folder with {other!r}; rename it")
                folders[name.casefold()], found[name] = name, changes
    return found


def _baseline(question: Question, grid: Grid, variants: Mapping[str, dict[str, Any]], excluded: Sequence[Cell]) -> str:
    """The name of the variant that is the baseline."""
    where = f"{ABLATE}.baseline"
    if isinstance(question.baseline, str):
        if question.baseline not in variants:
            raise ConfigError(f"{where}: {unknown('variant', question.baseline, variants)}")
        return question.baseline
    cell = grid.find_one(question.baseline, where)
    if cell not in grid.cells(excluded):
        parts = [i for i, part in enumerate(excluded) if part.items() <= cell.items()]
        raise ConfigError(f"{where}: it is left out by {ABLATE}.exclude.{parts[0]}")
    cells = grid.cells(excluded)
    return list(variants)[cells.index(cell)]  # the grid comes first


def _apply(tree: dict[str, Any], variants: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The experiment of each variant: a component before its options, since a new one drops those of the old one."""
    trees: dict[str, dict[str, Any]] = {}
    problems: dict[str, list[str]] = {}
    for name, changes in variants.items():
        ordered = sorted((Change(key.split("."), value) for key, value in changes.items()), key=lambda it: len(it.keys))
        trees[name] = tree
        for keys, value, _ in names_first(ordered):
            try:
                trees[name] = override(trees[name], keys, value)
            except ConfigError as error:
                problems.setdefault(name, []).append(str(error).removeprefix("override "))
    if problems:
        raise ConfigError(join(said_once(problems, list(variants))))
    return trees


def _check_overrides(
    file: str | Path, overrides: Sequence[str], tree: dict[str, Any], variants: Mapping[str, dict[str, Any]]
) -> None:
    """ConfigError for overrides of the experiment that no run would heed: they would be dropped silently."""
    varied = dict.fromkeys(key for changes in variants.values() for key in changes)
    with collected() as problems:
        for i, text in enumerate(overrides):
            keys, value = split_override(text)
            setting = next((key for key in varied if overlap(key, ".".join(keys))), "")
            with problems:
                if keys == ["seed"]:
                    raise ConfigError(f"override {text}: an ablation has its own seeds; set {ABLATE}.seeds=[{value}]")
                if setting and _is_idle(file, [*overrides[:i], *overrides[i + 1 :]], tree, variants):
                    raise ConfigError(
                        f"override {text}: every variant sets {setting} itself, so it would change none of them; leave "
                        f"it out, or change the {ABLATE} section"
                    )


def _is_idle(
    file: str | Path, others: Sequence[str], tree: dict[str, Any], variants: Mapping[str, dict[str, Any]]
) -> bool:
    """Whether what the ``others`` alone make is another experiment than ``tree``, and yet has the same variants."""
    try:
        without = {key: value for key, value in read_experiment(file, others).items() if key not in (ABLATE, "name")}
        return without != tree and _apply(without, variants) == _apply(tree, variants)
    except ConfigError:  # the others need it
        return False
