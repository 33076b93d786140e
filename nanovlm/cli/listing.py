"""``nanovlm list``: every component that an experiment can name, and the plugin it came from."""

import json
from typing import Annotated, Any

import typer
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nanovlm.cli.options import AsJson, PluginFiles
from nanovlm.components import ComponentConfig
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
    console.print(options_table(*found[0]) if name and len(found) == 1 else overview(found))
    console.print(failures(registries), end="", markup=False)


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
    import sys

    own = entry.cls.__dict__.get("__doc__") or sys.modules[entry.cls.__module__].__doc__ or ""
    return next(iter(own.strip().splitlines()), "")


def options(config: type[ComponentConfig]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "type": str(getattr(field.annotation, "__name__", field.annotation)).replace("typing.", ""),
            "default": None if field.default is PydanticUndefined else field.default,
            "doc": " ".join((field.description or "").split()),
        }
        for name, field in config.model_fields.items()
    ]


def overview(found: list[tuple[Registry, Entry]]) -> Table:
    shown = Table("kind", "name", "what it is", "from", title_justify="left")
    for registry, entry in found:
        shown.add_row(
            registry.kind, entry.name, escape(doc(entry)), f"{entry.plugin.distribution} {entry.plugin.version}"
        )
    return shown


def options_table(registry: Registry, entry: Entry) -> Table:
    title = f"{registry.kind} {entry.name}: {doc(entry)}\nfrom {entry.plugin.path}"
    shown = Table("option", "type", "default", "what it is", title=escape(title), title_justify="left")
    for option in options(entry.cls.Config):  # type: ignore[attr-defined]
        shown.add_row(option["name"], escape(option["type"]), escape(str(option["default"])), escape(option["doc"]))
    return shown


def failures(registries: Registries) -> str:
    return "".join(f"not loaded: {plugin.path}\n  {plugin.error}\n" for plugin in registries.plugins if plugin.error)
