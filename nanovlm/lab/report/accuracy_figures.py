"""Two figures of a benchmark: accuracy against FLOPs, and accuracy by category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from nanovlm.lab.comparison import Comparison, VariantResult
from nanovlm.lab.report.drawing import (
    LOG_FROM,
    ON_LOG,
    Label,
    Look,
    Sketch,
    Theme,
    label_beside,
    legend_above,
    shorten_middle,
)
from nanovlm.lab.report.tables import categories_of, percent, scaled
from nanovlm.lab.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Formatter
    from matplotlib.transforms import Bbox

MOST_CATEGORIES, MOST_VARIANTS = 20, 6  # in a figure; the tables have all
LONGEST_ROW = 22  # characters
LEAST_RANGE = 0.1  # of an axis of accuracies: noise is not blown up
INTERVALS = "Bars: 95 % intervals."

Row = tuple[str, Mapping[str, Estimate]]
"""A label, and an estimate for each variant."""


@dataclass(frozen=True)
class Point:
    """One variant's accuracy and what it cost."""

    variant: str
    cost: float
    accuracy: Estimate


def accuracy_figure(comparison: Comparison, benchmark: str, file: str) -> Sketch | None:
    """The accuracy against FLOPs, with the Pareto line; where no FLOPs are known the accuracies alone."""
    chosen = [variant for variant in comparison.variants if benchmark in variant.scores]
    if not chosen:
        return None
    unit, points = costs_of(chosen, benchmark)
    if not points:
        return _bare_accuracies(chosen, benchmark, file)
    caption = [INTERVALS]
    if len(points) > 1:
        caption.append("Grey line (Pareto): the best accuracy that so many FLOPs buy.")
    drawn = [point.variant for point in points]
    if missing := [variant.name for variant in chosen if variant.name not in drawn]:
        caption.append(f"Not drawn, as their FLOPs are not known: {', '.join(missing)}.")

    def draw(axes: Axes, theme: Theme, by_name: Mapping[str, Look]) -> None:
        axes.set_xlabel(f"{unit}, forward and backward")
        _draw_costs(axes, points, theme, by_name)

    said = [f"{point.variant} {percent(point.accuracy)} at {scaled(point.cost)}" for point in points]
    return Sketch(f"accuracy-{file}", f"Accuracy on {benchmark} against {unit}", said, caption, draw, 3.4, drawn)


def costs_of(variants: Sequence[VariantResult], benchmark: str) -> tuple[str, list[Point]]:
    """FLOPs a sample; where variants trained on different numbers of samples, those of the whole training.

    Variants whose FLOPs are not known have no point.
    """
    known = [variant for variant in variants if variant.costs.flops_per_sample]
    counts = {variant.costs.samples for variant in known}
    in_all = None not in counts and len(counts) > 1
    points = [
        Point(
            variant.name,
            (variant.costs.flops_per_sample or 0) * ((variant.costs.samples or 0) if in_all else 1),
            variant.scores[benchmark].accuracy,
        )
        for variant in known
    ]
    return "FLOPs of the training" if in_all else "FLOPs a sample", points


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats, by cost: none is as accurate at the same cost or less."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.accuracy.value)):
        if not front or point.accuracy.value > front[-1].accuracy.value:
            front.append(point)
    return front


def _draw_costs(axes: Axes, points: Sequence[Point], theme: Theme, by_name: Mapping[str, Look]) -> None:
    from matplotlib.transforms import Bbox

    axes.set_ylim(*accuracy_range([point.accuracy for point in points]))
    axes.yaxis.set_major_formatter(_percents())
    axes.set_ylabel("accuracy")
    _scale_costs(axes, points, max(len(by_name[point.variant].label) for point in points))
    axes.figure.canvas.draw()  # so that the axes have their place, and labels can be laid out
    taken = _draw_front(axes, pareto(points), theme) if len(points) > 1 else []
    for point in points:
        look, (low, high) = by_name[point.variant], ends_of(point.accuracy)
        axes.plot([point.cost] * 2, [low, high], color=look.colour, linewidth=1.6, alpha=0.7, solid_capstyle="butt")
        axes.plot(point.cost, point.accuracy.value, look.marker, color=look.colour, markersize=6)
        heights = (low, point.accuracy.value, high)
        bottom, middle, top = axes.transData.transform([(point.cost, height) for height in heights])
        taken += [Bbox([bottom - 3, top + 3]), Bbox([middle - 12, middle + 12])]
    label_beside(axes, [Label(p.cost, p.accuracy.value, by_name[p.variant].label) for p in points], taken)


def _scale_costs(axes: Axes, points: Sequence[Point], label_length: int) -> None:
    """From 0, or logarithmic where costs are far apart; with room for a label on the right."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    least, most = min(point.cost for point in points), max(point.cost for point in points)
    if most > LOG_FROM * least:
        axes.set_xscale("log")
        axes.set_xlim(least / 2, most * (most / least) ** (0.15 + 0.025 * label_length))
        axes.xaxis.set_major_locator(LogLocator(subs=ON_LOG))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, most * (1.15 + 0.025 * label_length))
    axes.xaxis.set_major_formatter(EngFormatter())


def _draw_front(axes: Axes, front: Sequence[Point], theme: Theme) -> list[Bbox]:
    """The Pareto line, up to the right end of the axes; the boxes that it takes, in pixels."""
    from matplotlib.transforms import Bbox

    ends = [*(point.cost for point in front[1:]), axes.get_xlim()[1]]
    corners = [(x, point.accuracy.value) for point, end in zip(front, ends, strict=True) for x in (point.cost, end)]
    axes.plot(*zip(*corners, strict=True), color=theme.faint, linewidth=0.8, zorder=1)
    pixels = axes.transData.transform(corners)
    return [Bbox([np.minimum(a, b) - 2, np.maximum(a, b) + 2]) for a, b in pairwise(pixels)]


def _bare_accuracies(chosen: Sequence[VariantResult], benchmark: str, file: str) -> Sketch:
    accuracies = {variant.name: variant.scores[benchmark].accuracy for variant in chosen}

    def draw(axes: Axes, theme: Theme, by_name: Mapping[str, Look]) -> None:
        _draw_rows(axes, [(by_name[name].label, {name: value}) for name, value in accuracies.items()], by_name)

    said = [f"{name} {percent(accuracy)}" for name, accuracy in accuracies.items()]
    caption, height = [INTERVALS, "No variant's FLOPs are known."], 0.7 + 0.26 * len(chosen)
    return Sketch(f"accuracy-{file}", f"Accuracy on {benchmark}", said, caption, draw, height, list(accuracies))


def category_figure(comparison: Comparison, benchmark: str, file: str) -> Sketch | None:
    """The accuracy in each category: a row a category, a dot with its interval a variant."""
    chosen = [variant for variant in comparison.variants if benchmark in variant.scores]
    drawn, categories = chosen[:MOST_VARIANTS], categories_of(comparison, benchmark)
    mains = [category for category in categories if "/" not in category]
    shown = (categories if len(categories) <= MOST_CATEGORIES else mains)[:MOST_CATEGORIES]
    if not shown:
        return None
    found = {variant.name: variant.scores[benchmark].categories for variant in drawn}
    rows: list[Row] = [
        (category, {name: values[category] for name, values in found.items() if category in values})
        for category in shown
    ]
    caption = [INTERVALS]
    if len(drawn) < len(chosen):
        caption.append(f"The first {len(drawn)} of {len(chosen)} variants; the table has all.")
    if len(shown) < len(categories):
        caption.append(f"{len(shown)} of {len(categories)} categories; the table has all.")

    def draw(axes: Axes, theme: Theme, by_name: Mapping[str, Look]) -> None:
        _draw_rows(axes, rows, by_name)
        legend_above(axes, list(found), by_name)

    said = [
        f"{row}: {', '.join(f'{name} {100 * value.value:.1f} %' for name, value in values.items())}"
        for row, values in rows
    ]
    title, height = f"Accuracy on {benchmark} by category", 1.0 + sum(0.12 + 0.11 * len(values) for _, values in rows)
    return Sketch(f"categories-{file}", title, said, caption, draw, height, list(found))


def _draw_rows(axes: Axes, rows: Sequence[Row], by_name: Mapping[str, Look]) -> None:
    """A dot with its bar for each estimate; the variants of a row stand below one another."""
    place, ticks = 0.0, []
    for _, values in rows:
        ticks.append(place + (len(values) - 1) / 2)
        for name, estimate in values.items():
            look = by_name[name]
            axes.plot(
                ends_of(estimate), [place] * 2, color=look.colour, linewidth=1.6, alpha=0.7, solid_capstyle="butt"
            )
            axes.plot(estimate.value, place, look.marker, color=look.colour, markersize=4.5)
            place += 1
        place += 1.1  # between rows
    axes.set_ylim(place - 1.1, -1)
    axes.set_yticks(ticks, [shorten_middle(label, LONGEST_ROW) for label, _ in rows], parse_math=False)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(*accuracy_range([estimate for _, values in rows for estimate in values.values()]))
    axes.xaxis.set_major_formatter(_percents())
    axes.set_xlabel("accuracy")


def accuracy_range(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """For an axis: all intervals with some air, at least ``LEAST_RANGE`` wide, hardly beyond 0 and 1."""
    ends = [end for estimate in estimates for end in ends_of(estimate)]
    low, high = min(ends), max(ends)
    air = max(0.08 * (high - low), (LEAST_RANGE - (high - low)) / 2)
    return max(-0.01, low - air), min(1.01, high + air)


def ends_of(estimate: Estimate) -> tuple[float, float]:
    """Of its interval; without one, the value itself."""
    low = estimate.value if estimate.low is None else estimate.low
    return low, estimate.value if estimate.high is None else estimate.high


def _percents() -> Formatter:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{100 * value:.3g} %")
