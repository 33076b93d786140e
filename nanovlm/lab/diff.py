"""What differs between two runs, and only that: experiment, code, plugins, versions, hardware, data, weights."""

from __future__ import annotations

import json
import re
from itertools import groupby
from typing import Any, NamedTuple

from nanovlm.evaluation.evaluator import numbered
from nanovlm.lab.results import Result
from nanovlm.training.resume import flat

ABSENT = "(absent)"
HASH = re.compile(r"[0-9a-f]{40,}")  # SHA-1 and SHA-256
RECORDED: dict[str, type] = {  # of provenance.json, and what it holds there
    "versions": dict, "git": dict, "source": str, "hardware": dict, "plugins": list, "data": str, "data_order": str,
    "initial_weights": dict,
}  # fmt: skip
ELSEWHERE = {"label", "torch", "python"}  # of the hardware: what the other keys and the versions say already


class Change(NamedTuple):
    """One thing that differs: ``a`` in the first run, ``b`` in the second; ABSENT where a run has nothing of the name.

    section: ``experiment``, ``code``, ``plugins``, ``versions``, ``hardware``, ``data`` or ``initial_weights``; and
        ``provenance`` for what a run has no record of, so that nothing can be said about it
    key: dotted in an experiment; a plugin's module; a role; ...
    """

    section: str
    key: str
    a: Any
    b: Any


def differences(a: Result, b: Result) -> list[Change]:
    """Section by section, keys in the order of the first run's."""
    left, right = _sections(a), _sections(b)
    changes = []
    for section in {**left, **right}:
        mine, theirs = left.get(section, {}), right.get(section, {})
        for key in {**mine, **theirs}:
            change = Change(section, key, mine.get(key, ABSENT), theirs.get(key, ABSENT))
            if change.a != change.b:
                changes.append(change)
    return changes + _unknown(a, b)


def describe(changes: list[Change]) -> str:
    """In lines: ``projector.factor: 2 -> 4`` under its section's name."""
    if not changes:
        return "no difference"
    lines = []
    for section, found in groupby(changes, key=lambda change: change.section):
        lines.append(section.replace("_", " "))
        lines += [f"  {change.key}: {shown(change.a)} -> {shown(change.b)}" for change in found]
    return "\n".join(lines)


def recorded(result: Result, key: str) -> Any:
    """What a run's provenance.json holds under a key; None where it holds nothing that could be understood."""
    found = result.provenance.get(key)
    return found if isinstance(found, RECORDED[key]) else None


def unrecorded(result: Result) -> list[str]:
    """The keys that are missing in a run's provenance.json, or are damaged."""
    return [key for key in RECORDED if recorded(result, key) is None]


def plugins(result: Result) -> dict[str, dict[str, Any]]:
    """A run's plugins by module; the second of two files of one name is called ``name-2``."""
    found = [plugin for plugin in recorded(result, "plugins") or [] if isinstance(plugin, dict)]
    names = numbered([str(plugin.get("module")) for plugin in found])
    return dict(zip(names, found, strict=True))


def edition(plugin: dict[str, Any]) -> str:
    """Which state of a plugin it is: ``nanovlm 0.1.0, sha256 1a2b3c4d5e6f``."""
    origin = " ".join(str(plugin[key]) for key in ("distribution", "version") if plugin.get(key))
    contract = f"contract {plugin['contract']}" if plugin.get("contract") else ""
    return ", ".join(filter(None, (origin, contract, f"sha256 {shown(plugin.get('sha256'))}")))


def shown(value: Any) -> str:
    """As a line of text has room for it: of a hash the first twelve digits."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text[:12] if HASH.fullmatch(text) else text


def _sections(result: Result) -> dict[str, dict[str, Any]]:
    """Everything that is compared, flat."""
    hardware = recorded(result, "hardware") or {}
    used = {key: result.summary[key] for key in ("precision", "ranks") if key in result.summary}
    return {
        "experiment": dict(flat(result.experiment)),
        "code": _present(result, "source") | (recorded(result, "git") or {}),
        "plugins": {name: edition(plugin) for name, plugin in plugins(result).items()},
        "versions": recorded(result, "versions") or {},
        "hardware": {key: value for key, value in hardware.items() if key not in ELSEWHERE} | used,
        "data": _present(result, "data") | _present(result, "data_order"),
        "initial_weights": recorded(result, "initial_weights") or {},
    }


def _present(result: Result, key: str) -> dict[str, Any]:
    return {} if (found := recorded(result, key)) is None else {key: found}


def _unknown(a: Result, b: Result) -> list[Change]:
    """What neither of the runs has a record of. (What one of them lacks is a difference already.)"""
    return [Change("provenance", key, ABSENT, ABSENT) for key in unrecorded(a) if key in unrecorded(b)]
