"""Every setting of an experiment, and where it came from: a default, a line of a file, an override, a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from nanovlm.blueprint import Recipe
from nanovlm.experiment import check_experiment
from nanovlm.merging import BY_ROLE
from nanovlm.places import Dropped, Place, all_dropped, along
from nanovlm.plugins import Registries
from nanovlm.reading import read_experiment
from nanovlm.unread import unread

DEFAULT = Place("default")
CHECKPOINT = "checkpoint "


@dataclass(frozen=True)
class Setting:
    """One value.

    key: dotted, as an override spells it
    remark: that nothing reads it, and why
    """

    key: str
    value: Any
    place: Place
    remark: str = ""

    def to_json(self) -> dict[str, Any]:
        found = {"key": self.key, "value": self.value, **place_json(self.place)}
        return found | ({"remark": self.remark} if self.remark else {})


@dataclass(frozen=True)
class Explanation:
    """An experiment's settings in order, and what was written, but dropped by a later file or override."""

    name: str
    settings: tuple[Setting, ...]
    dropped: tuple[tuple[str, Dropped], ...]

    def to_json(self) -> dict[str, Any]:
        dropped = [
            {"key": key, "value": gone.value, **place_json(gone.place), "by": place_json(gone.by)}
            for key, gone in self.dropped
        ]
        return {"name": self.name, "settings": [each.to_json() for each in self.settings], "dropped": dropped}


def place_json(place: Place | None) -> dict[str, Any]:
    if not place:
        return {"from": "unknown"}
    if place.line:
        return {"from": "file", "file": place.where, "line": place.line}
    if place.override:
        return {"from": "override", "override": place.override}
    if place.where.startswith(CHECKPOINT):
        return {"from": CHECKPOINT.strip(), "weights": place.where.removeprefix(CHECKPOINT)}
    return {"from": place.where}


def explain_experiment(file: str | Path, overrides: Sequence[str], registries: Registries) -> Explanation:
    """Raises ConfigError for whatever is wrong with the experiment."""
    tree = read_experiment(file, overrides)
    experiment = check_experiment(tree, file)
    recipe = Recipe.of(experiment, registries)
    decided = _decided(Recipe.of(experiment, registries, resolve=False), recipe)
    idle = {each.key: f"not read: {each.reason}" for each in unread(experiment)}
    settings = []
    for keys, value in _leaves(to_jsonable_python(recipe.dump())):
        key = ".".join(keys)
        by_checkpoint = (decided[above] for end in range(len(keys)) if (above := keys[: end + 1]) in decided)
        place = _origin(tree, keys) or next(by_checkpoint, DEFAULT)
        remark = idle.get(key, "") if value and place != DEFAULT else ""
        settings.append(Setting(key, value, place, remark))
    return Explanation(experiment.name, tuple(settings), tuple(all_dropped(tree)))


def _decided(given: Recipe, resolved: Recipe) -> dict[tuple[str, ...], Place]:
    """What the checkpoints decide, by its keys: options that were set when the ``config.json`` was read."""
    found: dict[tuple[str, ...], Place] = {}
    for before, after in zip(given.parts, resolved.parts, strict=True):
        keys = after.config.model_fields_set - before.config.model_fields_set
        where, place = after.where.split("."), Place(f"{CHECKPOINT}{after.weights}")
        found |= dict.fromkeys(((*where, key) for key in keys), place)
    return found


def _leaves(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Values by their keys: mappings and lists of mappings are gone into, a list of plain values is one."""
    entries: Any = ()
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        entries = enumerate(value)
    if not entries:
        yield keys, value
    for key, entry in entries:
        yield from _leaves(entry, (*keys, str(key)))  # which may itself have dots: a subset's name, say


def _origin(tree: dict[str, Any], keys: tuple[str, ...]) -> Place | None:
    """Where a value was written: itself, or what stands for it (a component's name, one number for all components)."""
    found = list(along(tree, keys))
    rest = keys[len(found) :]
    if not found:
        return None
    value, place = found[-1]
    stands_for_all = f"{'.'.join(keys[:-1])}." in BY_ROLE and len(rest) == 1 and not isinstance(value, dict)
    return place if not rest or stands_for_all or (rest == ("name",) and isinstance(value, str)) else None
