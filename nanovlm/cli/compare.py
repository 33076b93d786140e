"""``nanovlm compare``: what finished runs come to, against one of them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nanovlm.cli.evaluate import make_room_for
from nanovlm.cli.options import AsJson
from nanovlm.errors import ConfigError
from nanovlm.lab import diff
from nanovlm.lab.compare import compare
from nanovlm.lab.comparison import Comparison, plain
from nanovlm.lab.gathering import gather
from nanovlm.lab.report import tables
from nanovlm.lab.report.writer import write_report
from nanovlm.lab.results import Result
from nanovlm.lab.verdict import PAIRED

WIDE, LONGEST_NAME = 140, 24  # characters: of a terminal that has room for any name, and of a name that always fits
PADDING = 3  # characters beside each column


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or a sweep's folder.")],
    baseline: Annotated[
        str, typer.Option(metavar="RUN", help="A run, or a variant's name; by default the first.", show_default=False)
    ] = "",
    common: Annotated[
        bool, typer.Option("--common", help="Compare the questions that all were asked, if they were asked others too.")
    ] = False,
    difference: Annotated[
        bool, typer.Option("--diff", help="Of two runs: what differs in settings, code, plugins and versions.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Write a report with figures here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs that have finished: accuracies with intervals, differences to a baseline, costs, and a verdict."""
    if difference:
        if baseline or common or output:
            raise ConfigError("--diff only tells what differs: leave out --baseline, --common and --output")
        print(told_apart(runs, as_json))
        return
    if output:
        make_room_for(output / "report.md")
    chosen = gather(runs, baseline)
    comparison = compare(chosen.groups, chosen.baseline, chosen.name, chosen.unfinished, common)
    files = write_report(comparison, output) if output else []
    if as_json:
        print(json.dumps(comparison.to_json(), indent=2, ensure_ascii=False))
        return
    show(comparison)
    if files:
        print("\nwhere everything is", *(f"  {file}" for file in files), sep="\n")


def told_apart(folders: Sequence[Path], as_json: bool) -> str:
    """What differs between two runs, and only that."""
    if len(folders) != 2:
        raise ConfigError(f"--diff compares two runs, and {len(folders)} {'is' if len(folders) == 1 else 'are'} named")
    changes = diff.differences(*map(Result.open, folders))
    if as_json:
        return json.dumps(plain([change._asdict() for change in changes]), indent=2, ensure_ascii=False)
    return diff.describe(changes)


def show(comparison: Comparison) -> None:
    """Tables first, and below them what they come to."""
    console = Console()
    for table in with_short_names(list(all_tables(comparison)), comparison, console.width):
        console.print(in_terminal(table, console.width), end="\n\n")
    for line in in_words(comparison):
        print(fill(line, console.width, subsequent_indent="    ") if console.is_terminal else line)


def with_short_names(found: Sequence[tables.Table], comparison: Comparison, width: int) -> list[tables.Table]:
    """Where names are too long for a narrow terminal, the variants as numbers, which the first table explains."""
    names = [variant.name for variant in comparison.variants]
    if width >= WIDE or max(map(len, names)) <= LONGEST_NAME:
        return list(found)
    numbers = {name: f"({n})" for n, name in enumerate(names, 1)}
    explained, *others = found
    rows = tuple((replace(row[0], text=f"{numbers[row[0].text]} {row[0].text}"), *row[1:]) for row in explained.rows)
    return [replace(explained, rows=rows), *(renamed(table, numbers) for table in others)]


def renamed(table: tables.Table, names: Mapping[str, str]) -> tables.Table:
    rows = tuple((replace(row[0], text=names.get(row[0].text, row[0].text)), *row[1:]) for row in table.rows)
    return replace(table, rows=rows)


def all_tables(comparison: Comparison) -> Iterator[tables.Table]:
    yield tables.variants_table(comparison)
    for benchmark in comparison.benchmarks:
        yield tables.accuracy_table(comparison, benchmark)
    others = (tables.validation_table(comparison), tables.cost_table(comparison), tables.flip_table(comparison.flips))
    yield from (table for table in (*others, tables.unfinished_table(comparison)) if table)


def in_terminal(table: tables.Table, width: int) -> Table:
    """Cells are plain text: what they hold is no markup. Where they do not fit beside each other, intervals go below
    what they are of, and what is still too wide is turned over if that is narrower."""
    cells = [[str(cell) for cell in row] for row in table.rows]
    right = list(table.numeric)
    columns = list(table.columns)
    if natural_width(columns, cells) > width:
        cells = [[f"{cell.text}\n{cell.detail}".strip() for cell in row] for row in table.rows]
    turned = [list(column) for column in zip(columns[1:], *(row[1:] for row in cells), strict=True)]
    corner, names = columns[0], [row[0] for row in cells]
    if width < natural_width(columns, cells) > natural_width([corner, *names], turned):
        columns, cells, right = [corner, *names], turned, [False, *[True] * len(names)]
    shown = Table(
        title=Text(table.caption, "table.title"),
        title_justify="left",
        caption=Text(table.note, "table.caption") if table.note else None,
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    for column, numeric in zip(columns, right, strict=True):
        shown.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        shown.add_row(*map(Text, row))
    return shown


def natural_width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """In characters, with the padding of each column; headers may be broken between words, and cells may not."""
    widths = [max(map(len, column.split())) for column in columns]
    for row in rows:
        widths = [
            max(width, *(len(line) for line in cell.splitlines() or [""]))
            for width, cell in zip(widths, row, strict=True)
        ]
    return sum(widths) + PADDING * len(widths)


def in_words(comparison: Comparison) -> list[str]:
    """Verdicts, doubts, whether runs are paired, and what else is to be said."""
    lines: list[str] = []
    for benchmark in comparison.benchmarks:
        scores = [(variant.name, variant.scores[benchmark]) for variant in comparison.variants]
        found = [f"  {score.sentence}" for _, score in scores if score.sentence]
        found += [f"  {name}: {flag}" for name, score in scores for flag in score.flags]
        lines += ["", benchmark, *found] if found else []
    losses = [variant.validation_sentence for variant in comparison.variants if variant.validation_sentence]
    lines += ["", "validation loss", *(f"  {sentence}" for sentence in losses)] if losses else []
    if comparison.unpaired:
        lines += ["", "not paired", *(f"  {finding}" for finding in comparison.unpaired)]
    elif comparison.has_pairs:
        lines += ["", f"paired: {PAIRED}"]
    lines += ["", "notes", *(f"  {note}" for note in comparison.notes)] if comparison.notes else []
    return lines
