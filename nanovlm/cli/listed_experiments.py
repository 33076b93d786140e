"""``nanovlm list --experiments``: what comes with nanovlm to be trained, or asked."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from nanovlm.experiment import Experiment, load_experiment, read_experiment
from nanovlm.lab.ablation import load_ablation
from nanovlm.merging import ABLATE, BUDGETS, ROLES
from nanovlm.shipped import shipped_experiments

EDITORS = "# yaml-language-server:"  # the line that is for them


class Listed(NamedTuple):
    """One experiment, or an ablation."""

    name: str
    asks: str
    """The first sentence of its file."""
    components: str
    data: str
    budget: str
    command: str
    path: str


def listed_experiments() -> list[Listed]:
    return [_listed(name, file) for name, file in shipped_experiments().items()]


def _listed(name: str, file: Path) -> Listed:
    """Of an ablation, the components of all variants, and the budget of the baseline's runs."""
    is_ablation = ABLATE in read_experiment(file)
    if is_ablation:
        ablation = load_ablation(file)
        variants = [variant.experiment(ablation.seeds[0]) for variant in ablation.variants]
        runs = f"{len(variants) * len(ablation.seeds)} runs of "
    else:
        variants, runs = [load_experiment(file)], ""
    command = f"nanovlm {'ablate' if is_ablation else 'train'} {name}"
    budget = runs + _budget(variants[0])
    return Listed(name, first_sentence(file), _components(variants), _data(variants), budget, command, str(file))


def first_sentence(file: Path) -> str:
    """Of the comment that a file begins with."""
    lines = file.read_text(encoding="utf-8").splitlines()
    lines = lines[1:] if lines[0].startswith(EDITORS) else lines
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    return re.split(r"(?<=[.?!]) ", " ".join(comment), maxsplit=1)[0]


def _components(variants: Sequence[Experiment]) -> str:
    by_role = [list(dict.fromkeys(getattr(variant, role).name for variant in variants)) for role in ROLES]
    return " + ".join(names[0] if len(names) == 1 else f"({' or '.join(names)})" for names in by_role)


def _data(variants: Sequence[Experiment]) -> str:
    trained = dict.fromkeys(choice.name for variant in variants for choice in variant.data.train)
    asked = dict.fromkeys(choice.name for variant in variants for choice in variant.benchmarks)
    others = [name for name in asked if name not in trained]
    return ", ".join(trained) + (f"; asked: {', '.join(others)}" if others else "")


def _budget(experiment: Experiment) -> str:
    (budget,) = (key for key in BUDGETS if getattr(experiment.training, key))
    amount = getattr(experiment.training, budget)
    return f"{amount:,} {budget}" if isinstance(amount, int) else f"{amount:g} {budget}"


def experiments_table(rows: Sequence[Listed]) -> Table:
    shown = Table(Column("name", no_wrap=True), Column("what it asks", ratio=1), box=SIMPLE_HEAD, expand=True)
    for row in rows:
        what = [row.asks, f"{row.components}, on {row.data}", f"{row.budget}: {row.command}"]
        shown.add_row(row.name, "\n".join([escape(what[0]), *(f"[dim]{escape(line)}[/]" for line in what[1:])]))
    return shown
