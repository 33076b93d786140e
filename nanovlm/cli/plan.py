"""``nanovlm plan``: what an experiment will take, before anything is downloaded or trained."""

import json

from rich.console import Console
from rich.table import Table

from nanovlm.blueprint import Recipe
from nanovlm.cli.options import AsJson, ExperimentFile, Overrides, PluginFiles
from nanovlm.experiment import load_experiment
from nanovlm.planning import Plan, plan
from nanovlm.plugins import load_plugins


def command(
    experiment: ExperimentFile, overrides: Overrides = None, plugin: PluginFiles = None, as_json: AsJson = False
) -> None:
    """Show parameters, image tokens, FLOPs, memory and downloads of an experiment, without weights, data or GPU."""
    result = plan(Recipe.of(load_experiment(experiment, overrides or ()), load_plugins(plugin or ())))
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        Console().print(table(result))


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
