"""Readable names for experiments that differ in a few settings: ``factor=4,learning_rate.projector=0.002``.

A name is made for people, and is also a folder's: it has letters, digits and ``. _ = , + -`` only, no name is longer
than 80 characters, and no two are equal on a disk that does not tell capitals from small letters.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nanovlm.experiment import Experiment

LONGEST = 80
UNCHANGED = "unchanged"  # the name of what changes nothing
FORBIDDEN = re.compile(r"[^A-Za-z0-9._+=-]+")
SECTIONS = frozenset(Experiment.model_fields)


def names(changes: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each of several different sets of settings, given by dotted key.

    A key is shortened to its last words, as few as tell it from the others and from the experiment's own sections; of a
    component as a value, the options are named that tell it from others of its name. The names do not depend on the
    order. A name that is too long, or that another one would have too, ends in a hash of its settings.
    """
    values = {key: [each[key] for each in changes if key in each] for each in changes for key in each}
    short = short_keys(values)
    plain = [
        ",".join(f"{short[key]}={_shown(each[key], values[key])}" for key in sorted(each)) or UNCHANGED
        for each in changes
    ]
    folded = [name.casefold() for name in plain]
    return [
        name if len(name) <= LONGEST and folded.count(name.casefold()) == 1 else _hashed(name, each)
        for name, each in zip(plain, changes, strict=True)
    ]


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """For each dotted key its shortest tail that no other key ends with, and that is no section of an experiment."""
    words = {key: key.removesuffix(".name").split(".") for key in keys}
    tails = {key: {".".join(parts[i:]) for i in range(len(parts))} for key, parts in words.items()}

    def shortest(key: str) -> str:
        others = set[str]().union(*(tails[other] for other in words if other != key))
        for i in reversed(range(1, len(words[key]))):
            tail = ".".join(words[key][i:])
            if tail not in others | SECTIONS and not tail[:1].isdecimal():  # the index of a list says nothing alone
                return tail
        return ".".join(words[key])

    return {key: FORBIDDEN.sub("-", shortest(key)) for key in words}


def _shown(value: Any, others: Sequence[Any]) -> str:
    """A value in a few characters; ``others`` are all that its key has."""
    if isinstance(value, dict) and "name" in value:
        rivals = [other for other in map(_spelled_out, others) if other.get("name") == value["name"]]
        telling = sorted(key for key in value if any(key not in other or other[key] != value[key] for other in rivals))
        return "-".join([_text(value["name"]), *(f"{key}={_text(value[key])}" for key in telling)])
    return _text(value)


def _spelled_out(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    return {"name": value} if isinstance(value, str) else {}


def _text(value: Any) -> str:
    """``value`` in the characters that a name may have."""
    if isinstance(value, dict):
        text = "-".join(f"{key}={_text(value[key])}" for key in sorted(value, key=str))
    elif isinstance(value, list | tuple):
        text = "+".join(_text(entry) for entry in value)
    elif isinstance(value, bool) or value is None:
        text = {True: "true", False: "false", None: "none"}[value]
    elif isinstance(value, float) and float(short := f"{value:g}") == value:
        text = short
    else:
        text = str(value)
    return FORBIDDEN.sub("-", text) or "empty"


def _hashed(name: str, changes: Mapping[str, Any]) -> str:
    settings = json.dumps([(key, changes[key]) for key in sorted(changes)], default=str)
    return f"{name[: LONGEST - 9]}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
