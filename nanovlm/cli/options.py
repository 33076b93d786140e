"""Arguments and options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

EXPERIMENT = typer.Argument(
    metavar="EXPERIMENT", help="A YAML file, or an experiment that comes with nanovlm by its name, as in quickstart."
)
ExperimentFile = Annotated[Path, EXPERIMENT]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For example projector.factor=4.")
]
PluginFiles = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="FILE", help="Load a plugin from a Python file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class Device(StrEnum):
    AUTO = "auto"
    CUDA = "cuda"
    MPS = "mps"
    CPU = "cpu"


DeviceChoice = Annotated[Device, typer.Option(help="auto is CUDA, then Apple's MPS, then the CPU.")]

TokenizerChoice = Annotated[
    str, typer.Option(help="A folder or hub id, in the place of the model's own; a nanoVLM checkpoint has none.")
]
