"""``nanovlm plan``: what an experiment will take, before anything is downloaded or trained."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nanovlm.blueprint import Recipe
from nanovlm.cli.options import AsJson, ExperimentFile, Overrides, PluginFiles
from nanovlm.experiment import load_experiment
from nanovlm.explanation import DEFAULT, Explanation, explain_experiment, place_json
from nanovlm.places import Place
from nanovlm.planning import Plan, plan
from nanovlm.plugins import load_plugins


def command(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="List every setting instead, with the file and line that it came from.")
    ] = False,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Show parameters, image tokens, FLOPs, memory and downloads of an experiment, without weights, data or GPU."""
    registries = load_plugins(plugin or ())
    if explain:
        explained = explain_experiment(experiment, overrides or (), registries)
        if as_json:
            print(json.dumps(explained.to_json(), indent=2))
        else:
            show(explained, Console())
        return
    result = plan(Recipe.of(load_experiment(experiment, overrides or ()), registries))
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        Console().print(table(result))


def show(explained: Explanation, console: Console) -> None:
    """One setting a line, as an override would say it, and beside it where it came from."""
    files = short_names(explained)
    rows = [(spelled(each.key, each.value), shown(each.place, files), each) for each in explained.settings]
    width = min(max(len(text) for text, _, _ in rows), console.width - max(len(place) for _, place, _ in rows) - 2)
    for file, name in files.items():
        console.print(Text(f"{name} is {file}", "dim"), soft_wrap=True)
    for text, place, each in rows:
        style = "dim" if each.place == DEFAULT else "bold" if each.place.override else ""
        console.print(Text("\n".join(beside(text, place, width)), style), soft_wrap=True)
        if each.remark:
            console.print(Text(f"  {each.remark}", "yellow"), soft_wrap=True)
    for key, gone in explained.dropped:
        by = str(gone.by) if gone.by and gone.by.override else shown(gone.by, files)
        line = f"dropped: {spelled(key, gone.value)} ({shown(gone.place, files)}) by {by}"
        console.print(Text(line, "yellow"), soft_wrap=True)


def spelled(key: str, value: Any) -> str:
    """``training.betas=[0.9, 0.95]``"""
    plain = isinstance(value, str) and value != ""
    return f"{key}={value if plain else json.dumps(value, ensure_ascii=False)}"


def beside(text: str, place: str, width: int) -> Iterator[str]:
    """The place in a column of its own; where the text is too long, on the next line."""
    if len(text) > width:
        yield text
        text = ""
    yield f"{text:<{width}}  {place}"


def shown(place: Place | None, files: dict[str, str]) -> str:
    """``quickstart.yaml:12``, ``override``, ``checkpoint`` or ``default``: more would only repeat the setting."""
    if not place:
        return "unknown"
    return f"{files[place.where]}:{place.line}" if place.line else str(place_json(place)["from"])


def short_names(explained: Explanation) -> dict[str, str]:
    """The files that anything came from, with what to call them in a narrow column: their names, if those differ."""
    places = [each.place for each in explained.settings]
    places += [place for _, gone in explained.dropped for place in (gone.place, gone.by) if place]
    files = list(dict.fromkeys(place.where for place in places if place.line))
    names = [Path(file).name for file in files]
    return {file: name if names.count(name) == 1 else file for file, name in zip(files, names, strict=True)}


def table(result: Plan) -> Table:
    shown = Table("what", "how much", title=result.name, title_justify="left")
    for role, count in result.parameters.items():
        shown.add_row(f"parameters of the {role.replace('_', ' ')}", f"{count:,}")
    shown.add_row("parameters in all", f"{result.total_parameters:,}")
    shown.add_row("of these trained", f"{result.trained_parameters:,}")
    shown.add_row("image tokens an image", f"{result.image_tokens:,}")
    shown.add_row("longest sample with one image", f"{result.longest_sample:,} tokens")
    shown.add_row("FLOPs for it, forward and backward", f"{result.flops_per_sample / 1e9:,.1f} G")
    shown.add_row(f"GPU memory for training (estimate, {result.precision})", f"{result.memory_bytes / 2**30:,.1f} GiB")
    for download in result.downloads:
        shown.add_row(f"download of {download.where}", f"{download.source}, {download.size}")
    if not result.downloads:
        shown.add_row("would be downloaded", "nothing")
    return shown
