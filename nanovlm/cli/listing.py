"""``nanovlm list``: every component that an experiment can name, and the plugin it came from."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Column, Table

from nanovlm.cli.listed_experiments import experiments_table, listed_experiments
from nanovlm.cli.options import AsJson, PluginFiles
from nanovlm.cli.page_tables import components_block, experiments_block, renew
from nanovlm.errors import ConfigError, unknown
from nanovlm.plugins import OWN, Registries, load_plugins
from nanovlm.registry import Entry, Plugin, Registry

Found = list[tuple[Registry, Entry]]


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show only this component, with its options.")
    ] = None,
    experiments: Annotated[
        bool, typer.Option("--experiments", help="List the experiments that come with nanovlm instead.")
    ] = False,
    markdown: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Renew the table in this page, of what comes with nanovlm; - prints it."),
    ] = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """List the components, with their options, defaults and documentation."""
    if name and (experiments or markdown):
        raise ConfigError(f"{name!r} is one component, and --experiments and --markdown list them all: leave it out")
    if markdown and (plugin or as_json):
        raise ConfigError("--markdown writes a table of what comes with nanovlm: leave --plugin and --json out")
    registries = load_plugins(plugin or ())
    if markdown:
        block = experiments_block() if experiments else components_block(registries.defaults())
        if str(markdown) == "-":
            print(block)
        else:
            renew(markdown, block)
    elif experiments and as_json:
        print(json.dumps([listed._asdict() for listed in listed_experiments()], indent=2))
    elif experiments:
        Console().print(experiments_table(listed_experiments()))
    else:
        show(registries, name, as_json)


def show(registries: Registries, name: str | None, as_json: bool) -> None:
    """The components, or only those called ``name``, of whatever kinds."""
    everything = [(registry, entry) for registry in registries for entry in registry]
    found = [pair for pair in everything if not name or name in (pair[1].name, pair[0].with_origin(pair[1]))]
    if name and not found:
        raise ConfigError(unknown("component", name, {entry.name for _, entry in everything}))
    if as_json:
        failed = [{**described(plugin), "error": plugin.error} for plugin in registries.plugins if plugin.error]
        print(json.dumps({"components": [describe(*pair) for pair in found], "failed": failed}, indent=2))
        return
    console = Console()
    for registry, entry in found if name else []:
        show_one(console, registry, entry)
    if not name:
        show_all(console, found)
    console.print(failures(registries), end="", markup=False)
    if not name:
        console.print("nanovlm list NAME shows what a component's options mean, and their defaults")


def describe(registry: Registry, entry: Entry) -> dict[str, Any]:
    return {
        "kind": registry.kind,
        "name": entry.name,
        "doc": entry.doc,
        "plugin": described(entry.plugin),
        "options": options(entry.cls.Config),  # type: ignore[attr-defined]
    }


def described(plugin: Plugin) -> dict[str, Any]:
    """version: empty for a file that belongs to no distribution. default: whether it comes with nanovlm itself."""
    keys = ("module", "distribution", "version", "path", "contract")
    return {key: getattr(plugin, key) for key in keys} | {"default": plugin.distribution == OWN}


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


def show_all(console: Console, found: Found) -> None:
    """A table for each kind, all of them with columns of one width, and with room for words on a narrow terminal."""
    widest = max((len(entry.name) for _, entry in found), default=0)
    for kind in dict.fromkeys(registry.kind for registry, _ in found):
        columns = [
            Column("name", min_width=widest),
            Column("what it is, and its options", ratio=1),
            Column("from", overflow="fold", max_width=max(13, console.width // 4)),
        ]
        shown = Table(*columns, title=kind, title_justify="left", title_style="bold", box=SIMPLE_HEAD, expand=True)
        for registry, entry in found:
            if registry.kind == kind:
                shown.add_row(entry.name, "\n".join(in_short(registry, entry)), escape(shortened(entry.plugin.origin)))
        console.print(shown)


def in_short(registry: Registry, entry: Entry) -> list[str]:
    """What it is, how it is written if its name alone does not say which one is meant, and its options."""
    names = ", ".join(entry.cls.Config.model_fields)  # type: ignore[attr-defined]
    claimed = registry.is_claimed_twice(entry.name)
    lines = [escape(entry.doc)] + [f"written {escape(registry.with_origin(entry))}"] * claimed
    return lines + [f"[dim]{escape(names)}[/]"] * bool(names)


def shortened(origin: str) -> str:
    """A path from here, where that is shorter."""
    here = f"{Path.cwd()}/"
    return origin.removeprefix(here)


def show_one(console: Console, registry: Registry, entry: Entry) -> None:
    """A component with all of its options, and below each what it means: long names leave room for that."""
    console.print(heading(registry, entry), markup=False, highlight=False)
    rows = options(entry.cls.Config)  # type: ignore[attr-defined]
    if not rows:
        console.print("no options")
    for option in rows:
        default = "(required)" if option["required"] else f"= {option['default']!r}"
        line = f"[bold]{option['name']}[/]: {escape(option['type'])} {escape(default)}"
        console.print(Padding(line, (0, 0, 0, 2), expand=False), highlight=False)
        if option["doc"]:
            console.print(Padding(escape(option["doc"]), (0, 0, 0, 6), expand=False), highlight=False)


def heading(registry: Registry, entry: Entry) -> str:
    plugin = entry.plugin
    origin = f"{plugin.origin}, {plugin.path}" if plugin.version else f"the file {plugin.path}"
    itself = " (in nanovlm's own folder)" if plugin.distribution == OWN else ""
    contract = "" if plugin.contract is None else f", written for contract {plugin.contract}"
    lines = [f"{registry.kind} {entry.name}: {entry.doc}", f"from {origin}{itself}{contract}"]
    if registry.is_claimed_twice(entry.name):
        lines.append(f"several plugins claim this name: write {registry.with_origin(entry)!r}")
    return "\n".join(lines)


def failures(registries: Registries) -> str:
    failed = [plugin for plugin in registries.plugins if plugin.error]
    return "".join(f"not loaded: {plugin.path}{of(plugin)}\n  {plugin.error}\n" for plugin in failed)


def of(plugin: Plugin) -> str:
    return f" ({plugin.origin})" if plugin.version else ""
