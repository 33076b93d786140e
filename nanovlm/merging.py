"""How experiment files and overrides become one: mappings merge, lists replace (see experiment.py).

An ``ablate`` section is one question and no component: each of its keys replaces the one below as a whole, and a file
that gives ``axes`` or ``variants`` inherits neither of them, nor ``exclude`` and ``baseline``, which speak of them.

What is merged keeps the places where it was written, and remembers what was dropped (see places.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from nanovlm.errors import ConfigError
from nanovlm.places import Place, Written, WrittenList, joined, place_of, without
from nanovlm.yaml_reader import parse_yaml

ROLES = ("vision_encoder", "projector", "language_decoder")  # the components of a model
BUDGETS = ("steps", "samples", "epochs", "flops")  # of a training: one stands, and setting another removes it
ABLATE = "ablate"  # the key of a file that asks for several runs (see nanovlm/lab/ablation.py)
BY_ROLE = ("training.learning_rate.", "training.weight_decay.")  # one number stands for all components
BY_DOTTED_KEY = (f"{ABLATE}.axes.", f"{ABLATE}.baseline.")


def spelled_out(value: Any, place: Place | None = None) -> Any:
    """A component may be just its name, which stands at ``place``."""
    return Written.at(place, {"name": value}) if isinstance(value, str) else value


def _opened(value: Any, above: str, place: Place | None) -> Any:
    """What stands for a mapping as that mapping: a component's name, one number for all components."""
    if above in BY_ROLE and not isinstance(value, dict | list | str):
        return Written.at(place, dict.fromkeys(ROLES, value))
    return spelled_out(value, place)


def extend(base: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A file over the one that it extends."""
    below, asked = base.get(ABLATE), new.get(ABLATE)
    if isinstance(below, dict) and isinstance(asked, dict) and not asked.keys().isdisjoint(("axes", "variants")):
        kept = {key: value for key, value in below.items() if key in ("seeds", "match")}
        base = joined(base, {ABLATE: kept})  # it asks another question
    merged: dict[str, Any] = merge(base, new)
    return merged


def merge(base: Any, new: Any, above: str = "", places: tuple[Place | None, Place | None] = (None, None)) -> Any:
    """``new`` over ``base``, both at ``above``: mappings merge, all else replaces (see the top of this file).

    places: where the two were written, for what stands for a mapping
    """
    if isinstance(new, dict) and not isinstance(base, dict) and not (isinstance(base, str) and "name" in new):
        base = _opened(base, above, places[0])  # options for a component that was given by its name alone
    elif isinstance(base, dict) and "name" in base:
        new = spelled_out(new, places[1])
    if not (isinstance(base, dict) and isinstance(new, dict)):
        return new
    if above == f"{ABLATE}.":
        return joined(base, new)
    if "name" in base and "name" in new and base["name"] != new["name"]:
        return joined(without(base, list(base), place_of(new, "name")), new)
    if above == "training." and (budgets := [key for key in BUDGETS if key in new]):
        base = without(base, BUDGETS, place_of(new, budgets[0]))
    merged = joined(base, new)
    for key in (key for key in new if key in base):
        merged[key] = merge(base[key], new[key], f"{above}{key}.", (place_of(base, key), place_of(new, key)))
    return merged


def override(tree: Any, keys: Sequence[str], value: Any, above: str = "", place: Place | None = None) -> Any:
    """``tree``, which stands at ``above``, with ``value`` merged in at a dotted path; a list's entries go by index.

    place: where the value was written
    """
    if above.startswith(f"{ABLATE}.") and isinstance(tree, dict):
        dotted = ".".join(keys)  # an ablation has keys that are dotted themselves
        if dotted in tree or (above in BY_DOTTED_KEY and keys[0] not in tree):
            keys = [dotted]
    key, *rest = keys
    inside = f"{above}{key}."
    if isinstance(tree, list):
        i = _index(key, tree, above, rest)
        if rest:
            entry = override(_opened(tree[i], inside, place_of(tree, i)), rest, value, inside, place)
        else:
            entry = merge(tree[i], value, inside, (place_of(tree, i), place))
        places = [place if j == i else place_of(tree, j) for j in range(len(tree))]
        return WrittenList([*tree[:i], entry, *tree[i + 1 :]], places)
    if rest:
        below = _opened(tree[key], inside, place_of(tree, key)) if isinstance(tree, dict) and key in tree else None
        if below is None:
            below = [] if rest[0].isdecimal() else {}
        value = override(below, rest, value, inside, place)
    return merge(tree, Written.at(place, {key: value}), above)


def _index(key: str, entries: list[Any], above: str, rest: Sequence[str]) -> int:
    if key.isdecimal() and int(key) < len(entries):
        return int(key)
    whole = ".".join((above + key, *rest))
    if not entries:
        raise ConfigError(f"override {whole}: the list has no entries; write the whole: {above[:-1]}=[...]")
    first = ".".join((above + "0", *([key] if not key.isdecimal() else []), *rest))
    which = f"it has entries 0 to {len(entries) - 1}, as in {first}=..."
    raise ConfigError(f"override {whole}: {key!r} is no entry of this list; {which}")


def split_override(text: str) -> tuple[list[str], Any]:
    path, equals, value = text.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override {text!r}: expected dotted.key=value, for example projector.factor=4")
    return keys, parse_yaml(value, f"override {text!r}", Place.of_override(text))


class Change(NamedTuple):
    """A value for a dotted path, and where that was written."""

    keys: list[str]
    value: Any
    place: Place | None = None


def names_first(changes: Iterable[Change]) -> list[Change]:
    """In the order given, but a component's name before its options: a new name drops the old one's."""
    ordered: list[Change] = []
    for change in changes:
        index = len(ordered)
        if change.keys[-1] == "name" or isinstance(change.value, str):
            component = change.keys[:-1] if change.keys[-1] == "name" else change.keys
            options = (i for i, other in enumerate(ordered) if _is_option(other.keys, component))
            index = next(options, index)
        ordered.insert(index, change)
    return ordered


def _is_option(keys: list[str], component: list[str]) -> bool:
    return len(keys) > len(component) > 0 and keys[: len(component)] == component and keys[-1] != "name"
