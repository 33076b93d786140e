"""How experiment files and overrides become one: mappings merge, lists replace (see experiment.py).

An ``ablate`` section is one question and no component: each of its keys replaces the one below as a whole, and a file
that gives ``axes`` or ``variants`` inherits neither of them, nor ``exclude`` and ``baseline``, which speak of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nanovlm.errors import ConfigError
from nanovlm.yaml_reader import parse_yaml

ROLES = ("vision_encoder", "projector", "language_decoder")  # the components of a model
BUDGETS = ("steps", "samples", "epochs", "flops")  # of a training: one stands, and setting another removes it
ABLATE = "ablate"  # the key of a file that asks for several runs (see nanovlm/lab/ablation.py)
BY_ROLE = ("training.learning_rate.", "training.weight_decay.")  # one number stands for all components
BY_DOTTED_KEY = (f"{ABLATE}.axes.", f"{ABLATE}.baseline.")


def spelled_out(value: Any) -> Any:
    """A component may be just its name."""
    return {"name": value} if isinstance(value, str) else value


def extend(base: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A file over the one that it extends."""
    below, asked = base.get(ABLATE), new.get(ABLATE)
    if isinstance(below, dict) and isinstance(asked, dict) and not asked.keys().isdisjoint(("axes", "variants")):
        kept = {key: value for key, value in below.items() if key in ("seeds", "match")}
        base = base | {ABLATE: kept}  # it asks another question
    merged: dict[str, Any] = merge(base, new)
    return merged


def merge(base: Any, new: Any, above: str = "") -> Any:
    """``new`` over ``base``, both at ``above``: mappings merge, all else replaces (see the top of this file)."""
    if isinstance(base, str) and isinstance(new, dict) and "name" not in new:
        base = spelled_out(base)  # options for a component that was given by its name alone
    elif isinstance(base, dict) and "name" in base and isinstance(new, str):
        new = spelled_out(new)
    elif above in BY_ROLE and isinstance(new, dict) and not isinstance(base, dict):
        base = dict.fromkeys(ROLES, base)
    if not (isinstance(base, dict) and isinstance(new, dict)):
        return new
    if above == f"{ABLATE}.":
        return base | new
    if "name" in base and "name" in new and base["name"] != new["name"]:
        return new
    if above == "training." and any(key in new for key in BUDGETS):
        base = {key: value for key, value in base.items() if key not in BUDGETS}
    return base | {k: merge(base[k], value, f"{above}{k}.") if k in base else value for k, value in new.items()}


def override(tree: Any, keys: Sequence[str], value: Any, above: str = "") -> Any:
    """``tree``, which stands at ``above``, with ``value`` merged in at a dotted path; a list's entries go by index."""
    if above.startswith(f"{ABLATE}.") and isinstance(tree, dict):
        dotted = ".".join(keys)  # an ablation has keys that are dotted themselves
        if dotted in tree or (above in BY_DOTTED_KEY and keys[0] not in tree):
            keys = [dotted]
    key, *rest = keys
    if isinstance(tree, list):
        i = _index(key, tree, above, rest)
        entry = override(tree[i], rest, value, f"{above}{key}.") if rest else merge(tree[i], value, f"{above}{key}.")
        return [*tree[:i], entry, *tree[i + 1 :]]
    below = spelled_out(tree).get(key) if isinstance(tree, dict | str) else None
    if rest:
        if below is None:
            below = [] if rest[0].isdecimal() else {}
        value = override(below, rest, value, f"{above}{key}.")
    return merge(tree, {key: value}, above)


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
    return keys, parse_yaml(value, f"override {text!r}")


def names_first(pairs: Iterable[tuple[list[str], Any]]) -> list[tuple[list[str], Any]]:
    """In the order given, but a component's name before its options: a new name drops the old one's."""
    ordered: list[tuple[list[str], Any]] = []
    for keys, value in pairs:
        place = len(ordered)
        if keys[-1] == "name" or isinstance(value, str):
            component = keys[:-1] if keys[-1] == "name" else keys
            options = (i for i, (other, _) in enumerate(ordered) if _is_option(other, component))
            place = next(options, place)
        ordered.insert(place, (keys, value))
    return ordered


def _is_option(keys: list[str], component: list[str]) -> bool:
    return len(keys) > len(component) > 0 and keys[: len(component)] == component and keys[-1] != "name"
