"""Where each value of an experiment was written.

YAML is read into mappings and lists that remember it, and merging them keeps it (see merging.py): one tree holds the
values and their places. Everybody else may take them for plain dicts and lists, which they equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OVERRIDE = "override "


@dataclass(frozen=True)
class Place:
    """A line of a file; with line 0, what else gave a value, in words: ``override seed=3``."""

    where: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.where}, line {self.line}" if self.line else self.where

    @classmethod
    def of_override(cls, text: str) -> Place:
        return cls(f"{OVERRIDE}{text}")

    @property
    def override(self) -> str:
        """The override's text, if it is one."""
        return "" if self.line or not self.where.startswith(OVERRIDE) else self.where.removeprefix(OVERRIDE)


@dataclass(frozen=True)
class Dropped:
    """A setting that a later one left without a reader: an option of a component that was replaced, another budget."""

    value: Any
    place: Place | None
    by: Place | None


class Written(dict[Any, Any]):
    """A mapping that knows where its keys were written, and what merging dropped from it."""

    def __init__(
        self,
        content: Mapping[Any, Any] | None = None,
        places: Mapping[Any, Place | None] | None = None,
        dropped: Mapping[Any, Dropped] | None = None,
    ) -> None:
        super().__init__(content or {})
        self.places = dict(places or {})
        self.dropped = dict(dropped or {})

    @classmethod
    def at(cls, place: Place | None, content: Mapping[Any, Any]) -> Written:
        """A mapping that stands in one place as a whole."""
        return cls(content, dict.fromkeys(content, place))


class WrittenList(list[Any]):
    """A list that knows where its entries were written."""

    def __init__(self, content: Iterable[Any] = (), places: Iterable[Place | None] = ()) -> None:
        super().__init__(content)
        self.places = list(places)


def joined(base: Mapping[Any, Any], new: Mapping[Any, Any]) -> Written:
    """``base | new``, with the places of both, and with what either dropped."""
    places = {key: place_of(base, key) for key in base} | {key: place_of(new, key) for key in new}
    return Written({**base, **new}, places, {**_dropped(base), **_dropped(new)})


def without(tree: Mapping[Any, Any], keys: Iterable[Any], by: Place | None) -> Written:
    """The mapping less some of its keys, which it dropped because of what stands at ``by``."""
    gone = {key: Dropped(tree[key], place_of(tree, key), by) for key in keys if key in tree}
    rest = {key: value for key, value in tree.items() if key not in gone}
    return Written(rest, {key: place_of(tree, key) for key in rest}, {**_dropped(tree), **gone})


def _dropped(tree: Mapping[Any, Any]) -> Mapping[Any, Dropped]:
    return tree.dropped if isinstance(tree, Written) else {}


def place_of(tree: Any, key: Any) -> Place | None:
    """Where a mapping's key, or a list's entry, was written, if that is known."""
    if isinstance(tree, Written):
        return tree.places.get(key)
    return tree.places[key] if isinstance(tree, WrittenList) and key < len(tree.places) else None


def along(tree: Any, keys: Iterable[str]) -> Iterator[tuple[Any, Place | None]]:
    """The values on a dotted path with their places, as far as it goes."""
    for key in keys:
        own: Any = int(key) if isinstance(tree, list) and key.isdecimal() else key
        there = own in tree if isinstance(tree, dict) else isinstance(tree, list) and own in range(len(tree))
        if not there:
            return
        place, tree = place_of(tree, own), tree[own]
        yield tree, place


def value_at(tree: Any, keys: Sequence[str]) -> tuple[Any, Place | None] | None:
    """What was written at exactly this path, and where; None if nothing was."""
    found = list(along(tree, keys))
    return found[-1] if len(found) == len(keys) else None


def place_at(tree: Any, keys: Sequence[str]) -> Place | None:
    """Where the value at a dotted path was written; of one that is not there, the nearest one's above it."""
    return next((place for _, place in reversed(list(along(tree, keys)))), None)


def all_dropped(tree: Any, above: str = "") -> Iterator[tuple[str, Dropped]]:
    """What was dropped anywhere within a tree and has not come back, by dotted key."""
    if isinstance(tree, Written):
        yield from ((f"{above}{key}", gone) for key, gone in tree.dropped.items() if key not in tree)
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield from all_dropped(value, f"{above}{key}.")
