"""What can go wrong through the user's input, and one voice in which to say it.

Every error here is a small tutorial: where, what, and the likely fix. The command line prints the message without a
traceback and exits with status 2; anything else that is raised is a bug in nanovlm.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from nanovlm.places import Place, place_at

if TYPE_CHECKING:
    from nanovlm.data.dataset import Sample


class NanoVLMError(Exception):
    """Something the user can put right."""


class ConfigError(NanoVLMError):
    """An experiment, an option or a command-line argument that cannot work."""


class PluginError(NanoVLMError):
    """A plugin that cannot be used as it is."""


class DataError(NanoVLMError):
    """A dataset that cannot be used as it is."""


class CheckpointError(NanoVLMError):
    """Weights that do not fit the model they are loaded into, or a run's state that cannot be kept or read."""


class DivergedError(NanoVLMError):
    """A run whose loss is no finite number any more."""


class SkipSample(Exception):
    """Raised for one sample that cannot be used: it is left out of its step and counted under ``reason``.

    sample: what is known of it all the same, so that a benchmark's table can count it where it belongs.
    """

    def __init__(self, reason: str, sample: Sample | None = None) -> None:
        super().__init__(reason)
        self.reason, self.sample = reason, sample


def summary(error: Exception) -> str:
    """What another library said, in one line that is not too long; without any words, the error's kind."""
    return _shortened(error) or type(error).__name__


def named(error: Exception) -> str:
    """The same behind the error's kind."""
    return f"{type(error).__name__}: {_shortened(error)}"


def _shortened(error: Exception) -> str:
    return textwrap.shorten(str(error), 200, placeholder=" ...")


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Name what was not understood, what was probably meant, and what would be understood."""
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {name!r}.{hint}\n  Known here: {', '.join(known) or 'nothing'}"


def join(problems: Iterable[str]) -> str:
    """Several problems as one message, so that nobody has to fix them one run at a time."""
    problems = list(problems)
    if len(problems) == 1:
        return problems[0]
    return "\n".join(problem if problem.startswith("- ") else f"- {problem}" for problem in problems)  # joined before


def explain(
    error: ValidationError, schema: type[BaseModel], where: str, also: Iterable[str] = (), written: Any = None
) -> str:
    """Pydantic's findings as our messages: the dotted path, what is wrong, the value, and what the option is for.

    also: keys that are understood at the top beside the schema's own
    written: what was validated; where that knows the file and line (see places.py), the message says it
    """
    places: dict[_Place, list[Any]] = {}  # of a union, pydantic reports each member by itself
    for problem in error.errors():
        places.setdefault(_place(schema, problem["loc"]), []).append(problem)
    return join(
        _located(_explain_one(place, problems, where, also), place_at(written, place.keys))
        for place, problems in places.items()
    )


def _located(message: str, place: Place | None) -> str:
    """An override needs no place: its path and value are in the message."""
    first, newline, rest = message.partition("\n")
    return f"{first} ({place}){newline}{rest}" if place and place.line else message


class _Place(NamedTuple):
    """Where a key stands, and the model that owns it."""

    keys: tuple[str, ...]
    owner: type[BaseModel] | None


def _place(schema: type[BaseModel], loc: Iterable[int | str]) -> _Place:
    """Follow the annotations along pydantic's path, up to a union: what comes after names the union's members."""
    keys: list[str] = []
    owner: type[BaseModel] | None = None
    annotation: Any = schema
    for key in loc:
        annotation = _unwrapped(annotation)
        if get_origin(annotation) in (Union, UnionType):
            break
        owner = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
        keys.append(str(key))
        if owner is None:  # an entry of a list or a mapping
            annotation = next(iter(get_args(annotation)[-1:]), None)
        else:
            annotation = owner.model_fields[str(key)].annotation if str(key) in owner.model_fields else None
    return _Place(tuple(keys), owner)


def _unwrapped(annotation: Any) -> Any:
    """Without metadata, and without the None of an optional value."""
    if get_origin(annotation) is Annotated:
        return _unwrapped(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not NoneType]
        return _unwrapped(members[0]) if len(members) == 1 else annotation
    return annotation


def _explain_one(place: _Place, problems: list[Any], where: str, also: Iterable[str]) -> str:
    *parents, key = place.keys or ("",)
    kind = problems[0]["type"]
    above = ".".join(part for part in (where, *parents) if part)
    if kind == "extra_forbidden":
        known = [*(place.owner.model_fields if place.owner else ()), *(() if parents else also)]
        return f"{above or 'experiment'}: {unknown('option', key, known)}"
    if kind == "invalid_key":
        return f"{above or 'experiment'}: the key {key} is no word: put it in quotes"
    path = ".".join(part for part in (above, key) if part) or "experiment"
    if kind == "missing":
        return f"{path} is missing{_doc(place.owner, key)}"
    wording = " or ".join(dict.fromkeys(_wording(problem) for problem in problems))
    if kind == "value_error":
        return f"{path}: {wording}"
    return f"{path}={_shown(problems[0]['input'])}: {wording}{_doc(place.owner, key)}"


def _wording(problem: Any) -> str:
    kind, value = problem["type"], problem["input"]
    if kind in ("model_type", "dict_type"):
        return "input should be a mapping of keys to values"
    if kind == "int_type" and isinstance(value, float) and value.is_integer() and abs(value) < 1e16:
        return f"input should be a whole number, written {int(value)}"
    message: str = problem["msg"].removeprefix("Value error, ").replace(" after validation", "")
    return f"{message[0].lower()}{message[1:]}" if kind != "value_error" else message


def _shown(value: Any, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def _doc(owner: type[BaseModel] | None, key: str) -> str:
    field = owner.model_fields.get(key) if owner else None
    return f"\n  {key}: {' '.join(field.description.split())}" if field and field.description else ""
