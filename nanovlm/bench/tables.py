"""The README's tables, made from the results that are kept, so that no figure in them is typed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nanovlm.bench.results import Result
from nanovlm.bench.split import PIECES
from nanovlm.training.clock import per_second

BEGIN, END = "<!-- made by: nanovlm bench --table -->", "<!-- end -->"
REFERENCE = "H200"  # the GPU that speed is promised for: it has a row in every table, measured or not
UNMEASURED = "not measured"

Cells = list[str]


@dataclass(frozen=True)
class Table:
    """One table: of a part's results, each of which gives one or several rows below these columns."""

    part: str
    title: str
    columns: Sequence[str]
    rows: Callable[[dict[str, Any]], list[Cells]]

    def lines(self, results: Sequence[Result]) -> list[str]:
        chosen = [result for result in results if result.part == self.part]
        rows = [
            [result.hardware["label"], result.experiment, *cells]
            for result in chosen
            for cells in self.rows(result.figures)
        ]
        if not any(REFERENCE in result.hardware["label"] for result in chosen):
            rows.append([f"one {REFERENCE}", UNMEASURED, *[""] * len(self.columns)])
        header = ["on", "experiment", *self.columns]
        return [f"**{self.title}**", "", row(header), row(["---"] * len(header)), *map(row, rows), ""]


def readme_block(results: Sequence[Result]) -> str:
    """All tables, between the two comments that the README has them in."""
    lines = [line for table in TABLES for line in table.lines(results)]
    return "\n".join([BEGIN, "", *lines, END])


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def step_rows(figures: dict[str, Any]) -> list[Cells]:
    return [
        [
            figures["precision"],
            str(figures["samples_per_step"]),
            per_second(figures["samples_per_second"]),
            per_second(figures["tokens_per_second"]),
            f"{figures['mfu']:.0%} of {figures['peak_flops_per_second'] / 1e12:.3g}",
            *(f"{figures['split'][piece]['share']:.1%}" for piece in PIECES),
            gibibytes(figures["peak_memory_bytes"]),
        ]
    ]


def loader_rows(figures: dict[str, Any]) -> list[Cells]:
    alone, together = figures["one_process"], figures.get("with_workers")
    cells = [per_second(together["samples_per_second"]), str(figures["workers"])] if together else ["", "0"]
    return [[per_second(alone["samples_per_second"]), *cells]]


def generation_rows(figures: dict[str, Any]) -> list[Cells]:
    return [
        [
            figures["precision"],
            str(batch["batch"]),
            per_second(batch["tokens_per_second"]),
            f"{batch['ms_per_token']:.1f}",
            f"{batch['first_token_ms']:.0f}",
        ]
        for batch in figures["batches"]
    ]


def memory_rows(figures: dict[str, Any]) -> list[Cells]:
    largest = figures["largest"]
    sizes = [f"{largest[key]:,}" for key in ("samples", "tokens_per_row", "images_per_row")]
    return [[figures["precision"], *sizes, gibibytes(largest["peak_memory_bytes"]), figures["stopped_by"]]]


def comparison_rows(figures: dict[str, Any]) -> list[Cells]:
    seconds = [f"{figures[key]:.3g}" for key in ("ours_seconds", "upstream_seconds")]
    return [[figures["precision"], str(figures["samples"]), *seconds, f"{figures['ratio']:.2f}"]]


def gibibytes(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"


def spaced(name: str) -> str:
    """A figure's name in words; its unit stands beside the figure."""
    return name.removesuffix("_bytes").replace("_", " ")


TABLES = (
    Table(
        "step",
        "Training: whole steps, and where their time goes (MFU: of so many TFLOP/s)",
        (
            "precision",
            "samples a step",
            "samples/s",
            "tokens/s",
            "MFU",
            *(p.replace("_", " ") for p in PIECES),
            "memory",
        ),
        step_rows,
    ),
    Table("loader", "Data: JPEGs of 640 x 480", ("samples/s, one thread", "with workers", "workers"), loader_rows),
    Table(
        "generate",
        "Answers: 64 tokens each, about a picture",
        ("precision", "prompts at once", "tokens/s", "ms a token", "ms to the first"),
        generation_rows,
    ),
    Table(
        "memory",
        "Memory: the largest step in one row",
        ("precision", "samples", "tokens_per_row", "images_per_row", "memory", "stopped by"),
        memory_rows,
    ),
    Table(
        "against",
        "A forward and backward pass against nanoVLM v0.1, on the same samples",
        ("precision", "samples", "ours, s", "v0.1, s", "ours / v0.1"),
        comparison_rows,
    ),
)
