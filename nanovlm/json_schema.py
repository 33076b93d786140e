"""The JSON schema of experiment files, by which an editor completes, explains and checks them.

It is draft 7, the newest that every language server for YAML reads in full: there ``additionalProperties`` sees its
neighbours only, so that every component is one alternative with all of its keys. What a file leaves out it may have
from the one that it extends: so nothing must be there, and a component may stand without its name.

What a schema cannot say is left to the reader: that a number is written without a point (``1e6`` for 1000000), that
options go together, that there are files of this name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from nanovlm.errors import NanoVLMError
from nanovlm.experiment import Experiment, Named, NamedBenchmark, NamedDataset
from nanovlm.lab.ablation import Question
from nanovlm.merging import ABLATE, BUDGETS, BY_ROLE, ROLES
from nanovlm.plugins import Registries
from nanovlm.registry import Entry, Registry

DRAFT = "http://json-schema.org/draft-07/schema#"
NUMERIC = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "type")

Json = dict[str, Any]


def experiment_schema(registries: Registries) -> Json:
    """Of a file that is an experiment, or an ablation, with all components that are in ``registries``."""
    schema = _inheritable(schema_of(Experiment))
    keys = schema["properties"]
    keys["extends"] = {
        "type": "string",
        "description": "The experiment that this file changes: a path relative to it, or the name of a shipped one.",
    }
    for role in ROLES:
        keys[role] = {"$ref": f"#/definitions/{role}"}
    keys["data"]["properties"]["train"]["items"] = entry_of(registries.datasets, NamedDataset)
    keys["benchmarks"]["items"] = entry_of(registries.datasets, NamedBenchmark)
    keys["trackers"]["items"] = entry_of(registries.trackers, Named)
    for path in BY_ROLE:
        section, key, _ = path.split(".")
        keys[section]["properties"][key] = _one_number_or_each(keys[section]["properties"][key])
    keys["training"]["allOf"] = [_alone(budget) for budget in BUDGETS]
    keys[ABLATE] = ablation_schema()
    definitions = {role: model_part(registries.at(role)) for role in ROLES}
    return {"$schema": DRAFT, "title": "An experiment of nanovlm", **schema, "definitions": definitions}


def model_part(registry: Registry) -> Json:
    """A component of a model. Any may have ``weights``, to start from its part of a whole model."""
    weights = {
        "type": "string",
        "description": "A whole model (a folder or a hub id), to start from its part of that; or `random`.",
    }
    alternatives = {entry: {"weights": weights} | _options(entry) for entry in registry}
    known: Json = {}
    for options in alternatives.values():
        for key, option in options.items():
            known.setdefault(key, []).append(_inheritable(option))
    unnamed = {key: _any_of(found) for key, found in known.items()}
    branches = [
        _mapping(registry, entry, {key: _inheritable(option) for key, option in options.items()}, ["name"])
        for entry, options in alternatives.items()
    ]
    inherited = {
        "title": "options",
        "type": "object",
        "description": f"Options of the {registry.kind} of the file that this one extends.",
        "properties": unnamed,
        "additionalProperties": False,
    }
    what = f"The {registry.kind}: its name, or a mapping of its name and its options."
    return {"description": what, "anyOf": [inherited, *branches, *_names(registry, registry)]}


def entry_of(registry: Registry, keys: type[Named]) -> Json:
    """An entry of a list of components. Lists replace, so that it inherits nothing, and must have its name.

    keys: those that stand beside the options.
    """
    beside = {key: option for key, option in schema_of(keys)["properties"].items() if key != "name"}
    branches = []
    for entry in registry:
        config = _schema_of_config(entry)
        branches.append(
            _mapping(registry, entry, beside | config.get("properties", {}), ["name", *config.get("required", ())])
        )
    bare = [entry for entry in registry if "required" not in _schema_of_config(entry)]
    return {"anyOf": [*branches, *_names(registry, bare)]}


def ablation_schema() -> Json:
    """The section of a file that asks for several runs."""
    schema = _inheritable(schema_of(Question))
    keys = schema["properties"]
    parts = {role: {"$ref": f"#/definitions/{role}"} for role in ROLES}
    changes = {"type": "object", "properties": parts}
    named = {"type": "object", "additionalProperties": changes}
    keys["axes"]["properties"] = {role: {"anyOf": [_list_of(part), named]} for role, part in parts.items()}
    keys["axes"]["additionalProperties"] = {"anyOf": [_list_of({}), named]}
    keys["variants"]["additionalProperties"] = changes
    keys["baseline"]["anyOf"] = [{"type": "string"}, {"type": "object"}]
    return schema | {"description": "One question in several runs, which `nanovlm ablate` trains and compares."}


def schema_of(model: type[BaseModel], generator: type[GenerateJsonSchema] | None = None) -> Json:
    """Pydantic's schema of a model in draft 7, with everything where it is used, and without made-up titles."""
    schema = model.model_json_schema(schema_generator=generator or _Lenient)
    found: Json = _plain(schema, schema.get("$defs", {}), ())
    return found


class _Lenient(GenerateJsonSchema):
    """Of a type that JSON does not have, anything is right: a stranger's option stops nobody else's from completing."""

    ignored_warning_kinds = {"non-serializable-default", "skipped-choice"}

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> Json:
        return {}


class _OfOptions(_Lenient):
    """An option with a validator of its own before its type may take anything, unless that says what it takes."""

    def function_before_schema(self, schema: Any) -> Json:
        found = super().function_before_schema(schema)
        is_told = "json_schema_input_schema" in schema or schema["schema"]["type"] == "model"
        return found if is_told else {"anyOf": [found, {}]}


def _plain(schema: Any, definitions: Json, within: tuple[str, ...]) -> Any:
    """A schema with references filled in; one that leads back to where it stands allows anything."""
    if not isinstance(schema, dict):
        return schema
    if reference := schema.get("$ref"):
        if reference in within:
            return {}
        target = definitions[reference.rpartition("/")[2]]
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return _plain(target | beside, definitions, (*within, reference))
    plain: Json = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties"):
            plain[key] = {name: _plain(option, definitions, within) for name, option in value.items()}
        elif key in ("anyOf", "oneOf", "allOf"):
            plain[key] = [_plain(each, definitions, within) for each in value]
        elif key == "prefixItems":
            plain["items"] = [_plain(each, definitions, within) for each in value]
        elif key in ("items", "additionalProperties", "not"):
            plain.setdefault(key, _plain(value, definitions, within))
        elif key not in ("title", "$defs", "discriminator") and _is_json(value):
            plain[key] = value
    return plain


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _inheritable(schema: Any) -> Any:
    """Without what must be there: mappings merge with those of the file that is extended. Lists replace them."""
    if not isinstance(schema, dict):
        return schema
    found = {key: value for key, value in schema.items() if key != "required"}
    for key in ("anyOf", "oneOf", "allOf"):
        if key in found:
            found[key] = [_inheritable(each) for each in found[key]]
    if "properties" in found:
        found["properties"] = {name: _inheritable(option) for name, option in found["properties"].items()}
    return found


def _schema_of_config(entry: Entry) -> Json:
    return schema_of(entry.cls.Config, _OfOptions)  # type: ignore[attr-defined]


def _options(entry: Entry) -> Json:
    found: Json = _schema_of_config(entry).get("properties", {})
    return found


def _mapping(registry: Registry, entry: Entry, options: Json, required: list[str]) -> Json:
    """One component by its name, with its options."""
    about = {"description": entry.doc} if entry.doc else {}
    name = {"anyOf": [{"const": _spelled(registry, entry)}, _with_origin(registry, [entry])]} | about
    return {
        "title": entry.name,
        "type": "object",
        **about,
        "properties": {"name": name} | options,
        "required": required,
        "additionalProperties": False,
    }


def _spelled(registry: Registry, entry: Entry) -> str:
    return registry.with_origin(entry) if registry.is_claimed_twice(entry.name) else entry.name


def _names(registry: Registry, entries: Iterable[Entry]) -> list[Json]:
    """A component by nothing but its name."""
    entries = list(entries)
    offered = [_spelled(registry, entry) for entry in entries]
    return [{"title": "its name", "type": "string", "enum": offered}, _with_origin(registry, entries)]


def _with_origin(registry: Registry, entries: Iterable[Entry]) -> Json:
    """``origin:name``: it may stand where it need not, and is not offered there."""
    origins = {entry: "|".join(map(_escaped, _origins(registry, entry))) for entry in entries}
    taken = "|".join(f"({before}):{_escaped(entry.name)}" for entry, before in origins.items())
    known = ", ".join(sorted({_spelled(registry, entry) for entry in registry}))
    message = f"unknown {registry.kind}; known here: {known}"
    return {"title": "origin:name", "type": "string", "pattern": f"^({taken})$", "errorMessage": message}


def _origins(registry: Registry, entry: Entry) -> list[str]:
    """What may stand before the colon. An installed plugin's path may, too, but is another one on every machine."""
    plugin = entry.plugin
    module = plugin.module.rpartition(".")[2]
    spoken = dict.fromkeys((plugin.distribution, module, plugin.module, *(() if plugin.version else (plugin.path,))))
    return [origin for origin in spoken if _is_found(registry, f"{origin}:{entry.name}", entry)]


def _is_found(registry: Registry, name: str, entry: Entry) -> bool:
    try:
        return registry.find(name) is entry
    except NanoVLMError:  # another plugin has this origin, too
        return False


def _escaped(text: str) -> str:
    """For a pattern in JavaScript's dialect."""
    return re.sub(r"[\\^$.|?*+()\[\]{}/]", r"\\\g<0>", text)


def _any_of(schemas: list[Json]) -> Json:
    """What one of them takes, each said once; what all of them say of it stands before that."""
    distinct = [schema for i, schema in enumerate(schemas) if schema not in schemas[:i]]
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


def _one_number_or_each(by_role: Json) -> Json:
    """One number stands for all components."""
    each = next(iter(by_role["properties"].values()))
    number = {key: each[key] for key in NUMERIC if key in each}
    about = {key: by_role[key] for key in ("description", "default") if key in by_role}
    mapping = {key: value for key, value in by_role.items() if key not in about}
    return about | {"anyOf": [number, {"title": "by component", **mapping}]}


def _alone(budget: str) -> Json:
    """Where this budget is set, each of the others is 0."""
    message = f"exactly one budget out of {', '.join(BUDGETS)} must be set"
    others = {other: {"const": 0, "errorMessage": message} for other in BUDGETS if other != budget}
    is_set = {"properties": {budget: {"type": "number", "exclusiveMinimum": 0}}, "required": [budget]}
    return {"if": is_set, "then": {"properties": others}}


def _list_of(item: Mapping[str, Any]) -> Json:
    return {"type": "array", "items": dict(item), "minItems": 1}
