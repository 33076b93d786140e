"""Options as they stand in a YAML file, and how they are checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from nanovlm.errors import ConfigError, explain


class Schema(BaseModel):
    """Options as they stand in a YAML file: an unknown key is an error, ``true`` is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


def _names(names: list[str]) -> list[str]:
    if not all(name.strip() for name in names):
        raise ValueError("a name is empty")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(repeated)} stands there more than once")
    return names


NAMES = AfterValidator(_names)


SchemaT = TypeVar("SchemaT", bound=BaseModel)


def parse(schema: type[SchemaT], options: Any, where: str, also: Iterable[str] = ()) -> SchemaT:
    """Validate ``options``; a ConfigError names the dotted path under ``where``, the value and the likely fix.

    ``also`` are keys that may stand beside the schema's own, and are suggested like them.
    """
    try:
        return schema.model_validate(options)
    except ValidationError as error:
        raise ConfigError(explain(error, schema, where, also, options)) from None
