"""What can go wrong through the user's input, and one voice in which to say it.

Every error here is a small tutorial: where, what, and the likely fix. The command line prints the message without a
traceback and exits with status 2; anything else that is raised is a bug in nanovlm.
"""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError


class NanoVLMError(Exception):
    """Something the user can put right."""


class ConfigError(NanoVLMError):
    """An experiment, an option or a command-line argument that cannot work."""


class PluginError(NanoVLMError):
    """A plugin that cannot be used as it is."""


class DataError(NanoVLMError):
    """A dataset that cannot be used as it is."""


class CheckpointError(NanoVLMError):
    """Weights that do not fit the model they are loaded into."""


class SkipSample(Exception):
    """Raised for one sample that cannot be used: it is left out of its step and counted under ``reason``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Name what was not understood, what was probably meant, and what would be understood."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {name!r}.{hint}\n  Known here: {', '.join(known) or 'nothing'}"


def join(problems: Iterable[str]) -> str:
    """Several problems as one message, so that nobody has to fix them one run at a time."""
    problems = list(problems)
    return problems[0] if len(problems) == 1 else "\n".join(f"- {problem}" for problem in problems)


def explain(error: ValidationError, schema: type[BaseModel], where: str) -> str:
    """Pydantic's findings as our messages: the dotted path, what is wrong, the value, and what the option is for."""
    return join(_explain_one(problem, schema, where) for problem in error.errors())


def _explain_one(problem: Any, schema: type[BaseModel], where: str) -> str:
    *parents, key = [str(part) for part in problem["loc"]] or [""]
    owner = _owner(schema, parents)
    path = ".".join(part for part in (where, *parents) if part)
    if problem["type"] == "extra_forbidden":
        return f"{path or 'experiment'}: {unknown('option', key, owner.model_fields if owner else ())}"
    path = ".".join(part for part in (path, key) if part) or "experiment"
    if problem["type"] == "missing":
        return f"{path} is missing{_doc(owner, key)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{path}: {message}"
    return f"{path}={problem['input']!r}: {message[0].lower()}{message[1:]}{_doc(owner, key)}"


def _owner(schema: type[BaseModel], parents: list[str]) -> type[BaseModel] | None:
    """The nested model that owns a key, found by walking the annotations along its path."""
    owner: Any = schema
    for part in parents:
        field = owner.model_fields.get(part) if isinstance(owner, type) and issubclass(owner, BaseModel) else None
        if field is not None:
            owner = field.annotation
        elif part.isdigit():  # an entry of a list: its model is the list's argument
            owner = next(iter(getattr(owner, "__args__", ())), None)
    return owner if isinstance(owner, type) and issubclass(owner, BaseModel) else None


def _doc(owner: type[BaseModel] | None, key: str) -> str:
    field = owner.model_fields.get(key) if owner else None
    return f"\n  {key}: {' '.join(field.description.split())}" if field and field.description else ""
