"""The axes of an ablation, and the cells of the grid that they span."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanovlm.blueprint import collected
from nanovlm.errors import ConfigError, unknown
from nanovlm.merging import ABLATE, spelled_out

Cell = dict[str, int]  # for each axis by its key, which of its values

NO_AXES = {  # the first word of a key, and why no variant can set it
    "seed": f"every variant is trained with the same seeds: set {ABLATE}.seeds, for example [0, 1, 2]",
    "seeds": f"every variant is trained with the same seeds: set {ABLATE}.seeds, for example [0, 1, 2]",
    "name": f"a variant is named after what it sets, or by its own name under {ABLATE}.variants",
    "extends": "a file is extended at its top, for all variants alike",
    ABLATE: "a variant is one run, and cannot ask for several",
}


def check_key(key: str, where: str) -> None:
    """A ConfigError for a dotted key that no variant can set, whatever the components are."""
    words = key.split(".")
    if not all(words):
        raise ConfigError(f"{where}: {key!r} is no dotted key, such as projector.factor")
    if reason := NO_AXES.get(words[0]):
        raise ConfigError(f"{where}: {key!r} cannot be varied: {reason}")


@dataclass(frozen=True)
class Axis:
    """One thing that is varied: the values of a dotted key, or named sets of keys that change together.

    values: what an experiment's author calls them: the values themselves, or the names
    changes: what each of them sets, by dotted key
    """

    key: str
    values: tuple[Any, ...]
    changes: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, key: str, given: list[Any] | dict[str, dict[str, Any]]) -> Axis:
        if isinstance(given, dict):
            return cls(key, tuple(given), tuple(given.values()))
        return cls(key, tuple(given), tuple({key: value} for value in given))

    @property
    def settings(self) -> list[tuple[str, Any]]:
        """All keys that its values set, with what they are set to."""
        return [setting for change in self.changes for setting in change.items()]

    def check(self, where: str) -> None:
        """A ConfigError for an axis without values, for a value that stands twice, for a key that cannot be varied."""
        if not self.values:
            raise ConfigError(f"{where}: it has no values, so nothing would be trained")
        with collected() as problems:
            for key in dict(self.settings):
                with problems:
                    check_key(key, where)
            spelled = [spelled_out(value) for value in self.values]
            for i, value in enumerate(self.values):
                with problems:
                    if spelled[:i].count(spelled[i]) == 1:  # of three the third is not told again
                        raise ConfigError(f"{where}: the value {value!r} stands twice")

    def find(self, value: Any) -> int | None:
        """Which value is meant: an equal one, or by its name the only component of that name."""
        spelled = [spelled_out(known) for known in self.values]
        if spelled_out(value) in spelled:
            return spelled.index(spelled_out(value))
        called = [i for i, known in enumerate(spelled) if isinstance(known, dict) and known.get("name") == value]
        return called[0] if isinstance(value, str) and len(called) == 1 else None


@dataclass(frozen=True)
class Grid:
    """Every combination of the axes' values."""

    axes: tuple[Axis, ...]

    def find(self, given: Mapping[str, Any], where: str) -> Cell:
        """The values that are meant, of the axes that are named; a ConfigError for those that there are not."""
        axes = {axis.key: axis for axis in self.axes}
        found: Cell = {}
        with collected() as problems:
            for key, value in given.items():
                with problems:
                    if key not in axes:
                        raise ConfigError(f"{where}: {unknown('axis', key, axes)}")
                    place = axes[key].find(value)
                    if place is None:
                        raise ConfigError(f"{where}: {no_value(axes[key], value)}")
                    found[key] = place
        return found

    def find_one(self, given: Mapping[str, Any], where: str) -> Cell:
        """The one cell that is meant, by a value of each axis."""
        if not self.axes:
            raise ConfigError(f"{where}: there are no axes; give the name of a variant")
        with collected() as problems:
            found = {}
            with problems:
                found = self.find(given, where)
            for axis in self.axes:
                if axis.key not in given:
                    with problems:
                        raise ConfigError(f"{where}: it must also say which {axis.key}: {_listed(axis.values)}")
        return found

    def cells(self, excluded: Sequence[Cell]) -> list[Cell]:
        """All but those that have everything that an ``excluded`` one has."""
        if not self.axes:
            return []
        keys = [axis.key for axis in self.axes]
        places = itertools.product(*(range(len(axis.values)) for axis in self.axes))
        cells = [dict(zip(keys, place, strict=True)) for place in places]
        return [cell for cell in cells if not any(part.items() <= cell.items() for part in excluded)]

    def changes(self, cell: Cell) -> dict[str, Any]:
        """What a cell sets, by dotted key."""
        return {key: value for axis in self.axes for key, value in axis.changes[cell[axis.key]].items()}

    def shown(self, cell: Cell) -> dict[str, Any]:
        """A cell by the values, or their names, that the author gave."""
        return {axis.key: axis.values[cell[axis.key]] for axis in self.axes}

    def check(self) -> None:
        """A ConfigError for a key that two axes set."""
        owners: dict[str, list[str]] = {}
        for axis in self.axes:
            for key in dict(axis.settings):
                owners.setdefault(key, []).append(axis.key)
        with collected() as problems:
            for key, axes in owners.items():
                if len(axes) > 1:
                    with problems:
                        raise ConfigError(f"{ABLATE}.axes: {key} is set by the axes {' and '.join(axes)}")


def no_value(axis: Axis, value: Any) -> str:
    """That an axis has no such value, which one was probably meant, and which there are."""
    texts = [str(known) for known in axis.values]
    close = difflib.get_close_matches(str(value), texts, n=1)
    hint = f" Did you mean {axis.values[texts.index(close[0])]!r}?" if close and isinstance(value, str) else ""
    return f"{axis.key} has no value {value!r}.{hint}\n  Its values: {_listed(axis.values)}"


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)
