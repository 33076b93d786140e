"""What every component must do, of whatever kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from nanovlm.components import ComponentConfig
from nanovlm.errors import ConfigError
from nanovlm.schema import parse
from nanovlm.testing.checks import KINDS, Subject, Violation, check, doing
from nanovlm.testing.models import few
from nanovlm.yaml_reader import dump_yaml, parse_yaml


@check(*KINDS)
def options_are_documented(subject: Subject) -> None:
    """says of every option what it is: `nanovlm list`, error messages and editors show it."""
    undocumented = [
        f"{above}{name}"
        for above, schema in _schemas(subject.cls.Config)
        for name, field in schema.model_fields.items()
        if not (field.description or "").strip()
    ]
    if undocumented:
        raise Violation(f"says nothing about {few(undocumented)}: put a docstring under each option of `Config`")


@check(*KINDS)
def unknown_options_are_refused(subject: Subject) -> None:
    """refuses an option that it has not, and suggests the one that was meant."""
    lenient = [
        f"`{schema.__name__}`" + (f" (of {above.rstrip('.')})" if above else "")
        for above, schema in _schemas(subject.cls.Config)
        if schema.model_config.get("extra") != "forbid"
    ]
    if lenient:
        raise Violation(
            f"takes unknown options without a word in {few(lenient)}: use ComponentConfig or nanovlm.components.Schema "
            "and leave model_config's `extra` as it is there"
        )
    options = subject.config.model_dump()
    meant = max(options, key=len, default="option")
    misspelt = f"{meant}x"
    try:
        parse(subject.cls.Config, options | {misspelt: 1}, subject.kind)
    except ConfigError as error:
        if options and f"Did you mean {meant!r}" not in str(error):
            raise Violation(f"does not suggest {meant!r} for {misspelt!r}, but says: {error}") from None
        return
    raise Violation(f"takes the unknown option {misspelt!r} without a word: does a validator of `Config` drop it?")


@check(*KINDS)
def options_survive_the_run_folder(subject: Subject) -> None:
    """reads its options back from a run's experiment.yaml as they were."""
    schema: type[ComponentConfig] = subject.cls.Config
    config = subject.config
    with doing("to write its options into a run's experiment.yaml, and to read them back", subject):
        text = dump_yaml(config.model_dump())
        again = parse(schema, parse_yaml(text, "experiment.yaml"), subject.kind)
    if again != config:
        changed = [name for name in schema.model_fields if getattr(again, name) != getattr(config, name)]
        raise Violation(
            f"reads {few(changed)} back from a run's experiment.yaml as something else: an option is a number, a word, "
            "true or false, or lists and mappings of these"
        )
    once = config.resolved()
    if (twice := once.resolved()) != once:
        changed = [name for name in schema.model_fields if getattr(twice, name) != getattr(once, name)]
        raise Violation(f"resolves {few(changed)} again to something else: what is resolved() must stay as it is")


def _schemas(schema: type[BaseModel], above: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """A config, and every one that its options hold, each with the path before its own options."""
    yield above, schema
    for name, field in schema.model_fields.items():
        for inner in _models_in(field.annotation):
            yield from _schemas(inner, f"{above}{name}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
