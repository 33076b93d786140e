"""The command line: one small module a command, each a few lines of the public Python API."""

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from nanovlm.cli import ablate, bench, check, compare, evaluate, export, generate, listing, new, plan, schema, train
from nanovlm.errors import NanoVLMError
from nanovlm.training.interrupts import Stopped
from nanovlm.training.torchrun import is_first

app = typer.Typer(
    name="nanovlm",
    help="Compose small vision-language models by name, train them, evaluate them, talk to them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (train, evaluate, generate, export, plan, ablate, compare, bench, check, new, schema):
    app.command(name=module.__name__.rpartition(".")[2])(module.command)
app.command(name="list")(listing.command)


def show_version(asked: bool) -> None:
    if asked:
        print(f"nanovlm {version('nanovlm')}")
        raise typer.Exit


@app.callback()
def every_command(
    show: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="Show the version.")
    ] = False,
) -> None:
    pass


def speaker() -> str:
    """Who reports: of several processes only one may have something to say."""
    return "nanovlm" if is_first() else f"nanovlm: rank {os.environ['RANK']}"


def main() -> None:
    """Exit status: 0 done, 2 the user's input was wrong (a message, no traceback), 1 anything else (a run stopped)."""
    try:
        app(prog_name="nanovlm")  # of `python -m` too
    except NanoVLMError as error:
        if is_first() or not str(error).startswith("rank 0: "):  # who has said so itself
            print(f"{speaker()}: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"{speaker()}: {stopped}", file=sys.stderr)
        sys.exit(1)
