"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

ExperimentFile = Annotated[
    Path, typer.Argument(metavar="EXPERIMENT", help="A YAML file, for example experiments/quickstart.yaml.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For example projector.factor=4.")
]
PluginFiles = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="FILE", help="Load a plugin from a Python file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Device = Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")]
