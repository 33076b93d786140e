"""``nanovlm check``: does a component keep its contract?"""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from nanovlm.cli.options import AsJson, PluginFiles

SLOW = 1.0  # seconds: of a check that takes longer, it is shown how long


def command(
    name: Annotated[str, typer.Argument(help="A component, as an experiment names it.")],
    kind: Annotated[str, typer.Option(help="Where several kinds have one of this name: projector, dataset, ...")] = "",
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Check that a component keeps its contract, on its `Config.tiny()`. Exit status 1 if it does not."""
    from nanovlm.testing import checks_of  # brings the trainer along
    from nanovlm.testing.importing import start_importing

    bound = checks_of(name, kind, plugin or ())
    subject = bound[0].subject
    start_importing(subject)
    outcomes = [each.outcome() for each in bound]
    failed = any(outcome.problem for outcome in outcomes)
    if as_json:
        checks = [to_json(outcome) for outcome in outcomes]
        component = {"kind": subject.kind, "name": subject.entry.name, "plugin": subject.entry.plugin.path}
        print(json.dumps(component | {"passed": not failed, "checks": checks}, indent=2))
    else:
        console = Console()
        console.print(table(outcomes))
        console.print(f"{subject.kind} {subject.entry.name}: {summary(outcomes)}", markup=False, highlight=False)
    if failed:
        raise typer.Exit(1)


def to_json(outcome: Any) -> dict[str, Any]:
    return {
        "check": outcome.check.name,
        "says": outcome.check.says,
        "result": outcome.result,
        "reason": outcome.problem or outcome.skipped,
        "seconds": round(outcome.seconds, 3),
    }


def table(outcomes: list[Any]) -> Table:
    """A line for each check; behind a failed one what the component does, and behind a skipped one why."""
    from nanovlm.testing.checks import said_once

    shown = Table(Column("check", no_wrap=True), "result", Column("", overflow="fold"))
    colours = {"passed": "green", "failed": "red", "skipped": "yellow"}
    for outcome, said in zip(outcomes, said_once(outcomes), strict=True):
        reason = escape(said or outcome.skipped)
        took = f"took {outcome.seconds:.1f} s" if outcome.seconds > SLOW else ""
        colour = colours[outcome.result]
        shown.add_row(outcome.check.name, f"[{colour}]{outcome.result}[/]", "\n".join(filter(None, (reason, took))))
    return shown


def summary(outcomes: list[Any]) -> str:
    """``21 passed, 2 failed, 1 skipped in 4 s``."""
    results = [outcome.result for outcome in outcomes]
    counts = [f"{results.count(result)} {result}" for result in ("passed", "failed", "skipped") if result in results]
    return f"{', '.join(counts)} in {sum(outcome.seconds for outcome in outcomes):.0f} s"
