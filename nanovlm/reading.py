"""From an experiment's file to one tree of values: what it extends, and the overrides, merged (see merging.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanovlm.errors import ConfigError
from nanovlm.merging import BUDGETS, Change, extend, names_first, override, split_override
from nanovlm.places import Place, Written, joined, place_of
from nanovlm.shipped import find_experiment
from nanovlm.yaml_reader import read_yaml


def read_experiment(file: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A file merged with all that it extends and with ``overrides``; not yet validated."""
    file = find_experiment(file)
    tree = _read(file, ())
    called = place_of(tree, "name") or Place("file name")
    name = Written.at(called, {"name": tree.pop("name", file.stem)})  # no component's: the merge rules must not see it
    changes = [Change(*split_override(text), Place.of_override(text)) for text in overrides]
    _check_overrides([change.keys for change in changes])
    for keys, value, place in names_first(changes):
        if keys == ["name"]:
            name = Written.at(place, {"name": value})
        else:
            tree = override(tree, keys, value, place=place)
    return joined(name, tree)


def _read(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """One file, merged into what it extends."""
    if file.resolve() in above:
        circle = " -> ".join(path.name for path in (*above, file.resolve()))
        raise ConfigError(f"{file}: extends goes in a circle: {circle}")
    tree = read_yaml(file)
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{file}: extends={base!r} must be the path of one YAML file, relative to this one")
    try:
        found = find_experiment(base, file.parent)
    except ConfigError as error:
        raise ConfigError(f"{file}: extends={base!r}, relative to this file: {error}") from None
    below = _read(found, (*above, file.resolve()))
    below.pop("name", None)  # a run is named after its own file
    return extend(below, tree)


def _check_overrides(paths: Sequence[list[str]]) -> None:
    """ConfigError for what only a file may say, and for two budgets, of which one would silently go."""
    if any(keys[0] == "extends" for keys in paths):
        raise ConfigError("override extends: a file is extended at its own top; write one that extends both")
    budgets = sorted({keys[1] for keys in paths if keys[0] == "training" and len(keys) == 2 and keys[1] in BUDGETS})
    if len(budgets) > 1:
        raise ConfigError(
            f"overrides: exactly one budget out of {', '.join(BUDGETS)} must be set; {' and '.join(budgets)} are set"
        )
