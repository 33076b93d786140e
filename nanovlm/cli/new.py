"""``nanovlm new``: what somebody who has an idea starts from."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from nanovlm.cli.page_tables import COMPONENTS, EXPERIMENTS
from nanovlm.scaffold import scaffold

MADE = (COMPONENTS, EXPERIMENTS, "nanovlm schema --defaults > experiments/experiment.schema.json")
KIND = typer.Argument(metavar="KIND", help="vision_encoder, projector, language_decoder, dataset or tracker.")
NAME = typer.Argument(metavar="NAME", help="What experiments will call it, for example gated_mlp.")


def command(
    kind: Annotated[str, KIND],
    name: Annotated[str, NAME],
    package: Annotated[bool, typer.Option("--package", help="Write a distribution that can be published.")] = False,
    into: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write it; of a clone, its root.")] = Path("."),
) -> None:
    """Write a component that works, its test, and an experiment that uses it."""
    written = scaffold(kind, name, into, package)
    show("written", written.files)
    show("\nnext", written.commands)
    if written.form == "clone":
        show("\nbefore a pull request, in the clone's folder: what is made from its plugins and experiments", MADE)


def show(title: str, lines: Iterable[object]) -> None:
    print(title)
    for line in lines:
        print(f"  {line}")
