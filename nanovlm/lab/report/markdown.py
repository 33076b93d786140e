"""``report.md``: a comparison as GitHub shows it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from nanovlm.lab.report.figures import Picture
from nanovlm.lab.report.sections import Report, Section
from nanovlm.lab.report.tables import Table

MARKUP = re.compile(r"[\\`*|<~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|\](?=[(:])")  # `_` within a word is only itself

BLOCK = re.compile(r"^(\d*)([.)+-](?=[\s-]|$)|[#>])")  # what would begin a list, a heading, a quotation or a rule


def markdown(report: Report) -> str:
    """Figures are linked as ``figures/<name>.png``."""
    lines = [f"# {escaped(report.title)}", "", *_verdict(report)]
    for section in report.sections:
        lines += section_lines(section)
    lines += ["## How to read this", "", *_listed(report.reading)]
    return "\n".join(lines)


def _verdict(report: Report) -> list[str]:
    lines = [escaped(report.summary), ""]
    for verdict in report.verdicts:
        if len(report.verdicts) > 1:
            lines += [f"**{escaped(verdict.about)}**", ""]
        lines += _listed([*(sentence.text for sentence in verdict.sentences), *verdict.flags])
    pairing = escaped(report.pairing)
    if report.unpaired:
        return [*lines, f"**{pairing}**", "", *_listed(report.unpaired)]
    return [*lines, pairing, ""] if pairing else lines


def section_lines(section: Section) -> list[str]:
    lines = [f"## {escaped(section.title)}", ""]
    for text in section.texts:
        lines += [escaped(text), ""]
    for table in section.tables:
        lines += _table(table)
    for picture in section.pictures:
        lines += _picture(picture)
    return lines


def _table(table: Table) -> list[str]:
    marks = ["---:" if number else "---" for number in table.numeric]
    rows = [[escaped(str(cell)) for cell in row] for row in table.rows]
    lines = [f"**{escaped(table.caption)}**", "", _row(map(escaped, table.columns)), _row(marks), *map(_row, rows), ""]
    return [*lines, escaped(table.note), ""] if table.note else lines


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _picture(picture: Picture) -> list[str]:
    caption = f"*{escaped(picture.title)}.* {escaped(picture.caption)}"
    text = re.sub(r"\\?([\[\]])", r"\\\1", escaped(picture.text))  # a bracket alone would end it
    return [f"![{text}](figures/{picture.name}.png)", "", caption, ""]


def _listed(texts: Sequence[str]) -> list[str]:
    return [*(f"- {escaped(text)}" for text in texts), ""] if texts else []


def escaped(text: str) -> str:
    """On one line, and shown as it is: no emphasis, no formula, no link, no HTML, no new cell, list or heading."""
    line = " ".join(text.split()).replace("&", "&amp;")
    return BLOCK.sub(r"\1\\\2", MARKUP.sub(r"\\\g<0>", line))
