"""In which settings experiments differ, and what variants are called after them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nanovlm.evaluation.evaluator import numbered
from nanovlm.lab.naming import names
from nanovlm.training.resume import HARDWARE, LOGGING

NO_VARIANT = ("name", "seed", *LOGGING, *HARDWARE)  # what differs between runs of one variant
READABLE = 3  # settings in a name; of more of them a run's own name says more

Tree = Mapping[str, Any]


def settings_apart(tree: Tree, base: Tree) -> dict[str, Any]:
    """The settings of an experiment that another one has not, by dotted key; what it lacks itself is None.

    Where a component's name differs, the whole component is the setting. Nothing is said of the run's name and seed,
    nor of logging and hardware.
    """
    return {key: value for key, value in _apart(dict(tree), dict(base), "") if not _is_no_variant(key)}


def same_settings(tree: Tree, base: Tree) -> bool:
    return not settings_apart(tree, base)


def variant_names(trees: Sequence[Tree], base: int = 0) -> list[str]:
    """Unique names for different experiments: after the settings in which they differ, if these are few.

    Else after the runs, if these have different names; and else after what differs from the one at ``base``.
    """
    changes = [settings_apart(tree, trees[base]) for tree in trees]
    keys = {key for each in changes for key in each}
    keys = {
        key for key in keys if not any(key.startswith(f"{other}.") for other in keys)
    }  # a component has its options
    runs = [str(tree["name"]) for tree in trees]
    if 0 < len(keys) <= READABLE:
        found = [{key: setting(tree, key) for key in keys} for tree in trees]
        return names([{key: value for key, value in each.items() if value is not None} for each in found])
    if len(set(runs)) == len(runs):
        return runs
    made = names(changes)
    return numbered([runs[base] if i == base else name for i, name in enumerate(made)])


def setting(tree: Any, key: str) -> Any:
    """What an experiment has at a dotted key; None where it has nothing there."""
    for word in key.split("."):
        if isinstance(tree, list):
            tree = tree[int(word)] if int(word) < len(tree) else None
        else:
            tree = tree.get(word) if isinstance(tree, Mapping) else None
    return tree


def _apart(ours: Any, theirs: Any, above: str) -> Iterator[tuple[str, Any]]:
    """What differs between two trees that stand at ``above``, with the value in ``ours``."""
    if ours == theirs:
        return
    if isinstance(ours, dict) and isinstance(theirs, dict) and (not above or ours.get("name") == theirs.get("name")):
        for key in {**theirs, **ours}:
            yield from _apart(ours.get(key), theirs.get(key), f"{above}.{key}" if above else key)
    elif _are_components(ours) and _are_components(theirs) and len(ours) == len(theirs):
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from _apart(*pair, f"{above}.{i}")
    else:
        yield above, ours


def _are_components(value: Any) -> bool:
    """Of a list like ``data.train`` each entry has settings of its own; any other list is one setting."""
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _is_no_variant(key: str) -> bool:
    return any(key == other or key.startswith(f"{other}.") for other in NO_VARIANT)
