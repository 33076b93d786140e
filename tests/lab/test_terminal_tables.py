"""The tables of a comparison in a terminal, wide or narrow."""

import io
from dataclasses import replace

import pytest
from compared import comparison
from rich.console import Console

from nanovlm.cli.compare import all_tables, in_terminal, with_short_names
from nanovlm.lab.report.tables import cost_table


def shown(table, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(in_terminal(table, width))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_every_cell_of_every_table_is_shown_whole(width):
    for table in all_tables(comparison()):
        words = shown(table, width).split()
        for cell in (cell for row in table.rows for cell in row):
            assert all(piece in words for piece in f"{cell.text} {cell.detail}".split()), (table.caption, cell)
        assert all(piece in words for column in table.columns for piece in column.split()), table.caption


def test_what_fits_is_left_as_it_is_and_what_does_not_is_turned_over():
    costs = cost_table(comparison())
    first_column = {
        width: [line.split()[0] for line in shown(costs, width).splitlines()[2:] if line.strip()] for width in (70, 200)
    }
    assert {"factor=2", "factor=1", "factor=4"} <= set(first_column[200])
    assert {"parameters", "samples/s"} <= set(first_column[70])


def test_long_names_are_numbers_in_a_narrow_terminal():
    made = comparison()
    long = [f"{variant.name},learning_rate.projector=0.00{n}" for n, variant in enumerate(made.variants)]
    variants = tuple(replace(variant, name=name) for variant, name in zip(made.variants, long, strict=True))
    made = replace(made, variants=variants, baseline=long[0])
    found = with_short_names(list(all_tables(made)), made, 80)
    assert [row[0].text for row in found[0].rows] == [f"({n}) {name}" for n, name in enumerate(long, 1)]
    assert [row[0].text for row in found[1].rows] == ["(1)", "(2)", "(3)"]
    assert max(map(len, shown(found[1], 80).splitlines())) <= 80
    assert with_short_names(list(all_tables(made)), made, 200) == list(all_tables(made))


def test_what_stands_in_brackets_is_no_markup():
    costs = cost_table(comparison())
    row = (type(costs.rows[0][0])("[red]factor[/red]"), *costs.rows[0][1:])
    assert "[red]factor[/red]" in shown(type(costs)(costs.caption, costs.columns, (row,)), 200)
