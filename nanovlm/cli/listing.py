"""``nanovlm list``: every component that an experiment can name, and the plugin it came from."""

import json
import re
import sys
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from nanovlm.cli.options import AsJson, PluginFiles
from nanovlm.errors import ConfigError, unknown
from nanovlm.plugins import Registries, load_plugins
from nanovlm.registry import Entry, Registry


def command(
    name: Annotated[str | None, typer.Argument(help="Show only this component, with its options.")] = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """List the components, with their options, defaults and documentation."""
    registries = load_plugins(plugin or ())
    found = [(registry, entry) for registry in registries for entry in registry if name in (None, entry.name)]
    if name and not found:
        raise ConfigError(unknown("component", name, {entry.name for registry in registries for entry in registry}))
    if as_json:
        failed = [{"plugin": plugin.path, "error": plugin.error} for plugin in registries.plugins if plugin.error]
        print(json.dumps({"components": [describe(*pair) for pair in found], "failed": failed}, indent=2))
        return
    console = Console()
    for registry, entry in found if name else []:
        console.print(heading(registry, entry), markup=False, highlight=False)
        console.print(options_table(entry) if entry.cls.Config.model_fields else "no options")  # type: ignore[attr-defined]
    if not name:
        console.print(overview(found))
    console.print(failures(registries), end="", markup=False)
    if not name:
        console.print("nanovlm list NAME shows what a component's options mean, and their defaults")


def describe(registry: Registry, entry: Entry) -> dict[str, Any]:
    plugin = entry.plugin
    return {
        "kind": registry.kind,
        "name": entry.name,
        "doc": doc(entry),
        "plugin": {
            "module": plugin.module,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "path": plugin.path,
        },
        "options": options(entry.cls.Config),  # type: ignore[attr-defined]
    }


def doc(entry: Entry) -> str:
    """The first line of the class's own docstring, or of its module's."""
    own = entry.cls.__dict__.get("__doc__") or sys.modules[entry.cls.__module__].__doc__ or ""
    return next(iter(own.strip().splitlines()), "")


def options(config: type[BaseModel], above: str = "") -> list[dict[str, Any]]:
    """An option that is a mapping of others (``lora``) is followed by those, each with its path (``lora.rank``)."""
    found = []
    for name, field in config.model_fields.items():
        found.append(
            {
                "name": above + name,
                "type": spelled(field.annotation),
                "required": field.is_required(),
                "default": None
                if field.is_required()
                else to_jsonable_python(field.get_default(call_default_factory=True)),
                "doc": " ".join((field.description or "").split()),
            }
        )
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found += options(inner, f"{above}{name}.")
    return found


def spelled(annotation: Any) -> str:
    """A type as Python spells it, without the modules' names."""
    plain = isinstance(annotation, type) and get_origin(annotation) is None
    return annotation.__name__ if plain else re.sub(r"\b(?:[a-z_]\w*\.)+(?=\w)", "", str(annotation))


def overview(found: list[tuple[Registry, Entry]]) -> Table:
    shown = Table("kind", "name", "what it is, and its options", "from", title_justify="left")
    for registry, entry in found:
        names = ", ".join(entry.cls.Config.model_fields)  # type: ignore[attr-defined]
        what = f"{escape(doc(entry))}\n[dim]{escape(names)}[/]" if names else escape(doc(entry))
        shown.add_row(registry.kind, entry.name, what, f"{entry.plugin.distribution} {entry.plugin.version}")
    return shown


def heading(registry: Registry, entry: Entry) -> str:
    return f"{registry.kind} {entry.name}: {doc(entry)}\nfrom {entry.plugin.path}"


def options_table(entry: Entry) -> Table:
    rest = (Column(header, overflow="fold") for header in ("type", "default", "what it is"))  # nothing is cut off
    shown = Table(Column("option", no_wrap=True), *rest)
    for option in options(entry.cls.Config):  # type: ignore[attr-defined]
        default = "(required)" if option["required"] else str(option["default"])
        shown.add_row(option["name"], escape(option["type"]), escape(default), escape(option["doc"]))
    return shown


def failures(registries: Registries) -> str:
    return "".join(f"not loaded: {plugin.path}\n  {plugin.error}\n" for plugin in registries.plugins if plugin.error)
