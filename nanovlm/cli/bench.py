"""``nanovlm bench``: how fast an experiment trains, loads and answers on this machine, and what memory it takes."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nanovlm.bench.request import PARTS, Request, run
from nanovlm.bench.results import Result, read_results
from nanovlm.bench.tables import readme_block, spaced
from nanovlm.cli.evaluate import make_room_for
from nanovlm.cli.options import AsJson, Overrides, PluginFiles

File = Annotated[
    Path | None,
    typer.Argument(metavar="EXPERIMENT", help="A YAML file, or one that comes with nanovlm.", show_default=False),
]
Part = Annotated[str, typer.Option(metavar="|".join(PARTS), help="By default step: of training.", show_default=False)]
Synthetic = Annotated[bool, typer.Option("--synthetic", help="Made-up samples: no hub, datasets or tokenizer.")]
Steps = Annotated[int | None, typer.Option(metavar="N", help="How many steps to time.", show_default=False)]
Memory = Annotated[bool, typer.Option("--memory", help="Memory by samples a step, up to the most that fit.")]
Most = Annotated[int | None, typer.Option(metavar="N", help="With --memory: stop there.", show_default=False)]
Against = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Against nanoVLM v0.1, a checkout of which FOLDER is.", show_default=False),
]
Samples = Annotated[int | None, typer.Option(metavar="N", help="With --against: of so many.", show_default=False)]
ForReadme = Annotated[bool, typer.Option("--table", help="Print the README's tables, of experiments/results.")]
Output = Annotated[Path | None, typer.Option(dir_okay=False, help="Write the result as JSON here.")]


def command(
    experiment: File = None,
    overrides: Overrides = None,
    part: Part = "",
    synthetic: Synthetic = False,
    steps: Steps = None,
    memory: Memory = False,
    most: Most = None,
    against: Against = None,
    samples: Samples = None,
    table: ForReadme = False,
    output: Output = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast an experiment trains, loads and answers here, and what memory it takes.

    Answers (--part generate), --memory and --against take synthetic samples always; weights are random.
    """
    if table:
        print(readme_block(read_results()))
        return
    request = Request(experiment, overrides or (), part, synthetic, memory, against, steps, most, samples, plugin or ())
    request.check()
    if output:
        make_room_for(output)
    result = run(request)
    if output:
        result.write(output)
    if as_json:
        print(result.to_json())
    else:
        Console().print(*shown(result), sep="\n")


def shown(result: Result) -> list[Table]:
    """What was found; what is one of several, in a table below."""
    title = f"{result.experiment}, {result.part}: on {result.hardware['label']}"
    tables = [Table("what", "how much", title=title, title_justify="left")]
    for name, value in result.figures.items():
        if isinstance(value, list) and isinstance(value[0], dict):
            tables.append(grid(value))
        elif isinstance(value, dict) and all(isinstance(entry, dict) for entry in value.values()):
            tables.append(grid([{name: spaced(key), **entry} for key, entry in value.items()]))
        else:
            entries = {f"{name} {key}": entry for key, entry in value.items()} if isinstance(value, dict) else None
            for key, entry in (entries or {name: value}).items():
                tables[0].add_row(spaced(key), in_words(key, entry))
    return tables


def grid(entries: list[dict[str, Any]]) -> Table:
    table = Table(*map(spaced, entries[0]))
    for entry in entries:
        table.add_row(*(in_words(name, value) for name, value in entry.items()))
    return table


def in_words(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(in_words(name, entry) for entry in value)
    if name.endswith("bytes") and value is not None:
        return f"{value / 2**30:,.2f} GiB"
    if name.endswith("flops_per_second"):
        return f"{value / 1e12:,.3g} TFLOP/s"
    if name.endswith(("share", "mfu", "data_wait")):
        return f"{value:.1%}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
