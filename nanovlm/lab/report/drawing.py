"""How figures look: two themes, one colour and mark a variant, and labels beside what they name."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

WIDTH = 4.8  # inches: shown at a phone's width, 9 points are still read
DPI = 220
LOG_FROM = 8  # the largest over the smallest value: from there on an axis is logarithmic
ON_LOG = (1, 2, 5)  # what is named on it, times powers of ten
LONGEST_LABEL = 16  # characters; longer names stand in a key below the figure
MOST_LABELLED = 7  # lines, where they end
LABEL_HEIGHT = 12  # points
KEY_WIDTH = 62  # characters
KEY_LINE = 0.17  # inches

# Okabe & Ito 2008 (jfly.uni-koeln.de/color), told apart by the colour-blind; without yellow, which white swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D")
DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


@dataclass(frozen=True)
class Theme:
    """The colours of everything but the data."""

    paper: str
    ink: str
    faint: str
    grid: str


LIGHT = Theme(paper="#ffffff", ink="#1f2328", faint="#59636e", grid="#e4e8ec")
DARK = Theme(paper="#16191d", ink="#e6e8ea", faint="#9aa4af", grid="#2c3238")


@dataclass(frozen=True)
class Look:
    """A variant's colour, mark, line and label. The baseline has the ink's colour."""

    colour: str
    marker: str
    dashes: Literal["-", "--", ":", "-."]
    label: str


def looks(names: Sequence[str], baseline: str, theme: Theme) -> dict[str, Look]:
    """After six colours the marks and dashes change."""
    others = [name for name in names if name != baseline]
    labels = short_labels(names)
    chosen = {}
    for name in names:
        turn, colour = divmod(others.index(name), len(COLOURS)) if name != baseline else (0, None)
        chosen[name] = Look(
            theme.ink if colour is None else COLOURS[colour],
            MARKERS[turn % len(MARKERS)],
            DASHES[turn % len(DASHES)],
            labels[name],
        )
    return chosen


def short_labels(names: Sequence[str]) -> dict[str, str]:
    """The names; if some are too long, without the key that all may share (``projector=``); else numbers."""
    heads = {name.partition("=")[0] for name in names}
    tails = [name.partition("=")[2] for name in names]
    for labels in (list(names), tails if len(heads) == 1 and all(tails) else []):
        if labels and max(map(len, labels)) <= LONGEST_LABEL:
            return dict(zip(names, labels, strict=True))
    return {name: str(number) for number, name in enumerate(names, start=1)}


def shorten_middle(text: str, most: int) -> str:
    """At most so many characters: names differ at their ends more often than within."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-(most - most // 2 - 3) :]}"


@dataclass(frozen=True)
class Sketch:
    """A figure before it is rendered.

    said: what it shows, in numbers. variants: those that it shows. height: in inches, without a key
    """

    name: str
    title: str
    said: Sequence[str]
    caption: Sequence[str]
    draw: Callable[[Axes, Theme, Mapping[str, Look]], None]
    height: float
    variants: Sequence[str]


def needs_key(names: Sequence[str]) -> bool:
    """Whether the labels are numbers, or there are more lines than can be labelled where they end."""
    labels = short_labels(names)
    return len(names) > MOST_LABELLED or any(label != name and label.isdigit() for name, label in labels.items())


def render(sketch: Sketch, theme: Theme, by_name: Mapping[str, Look], key: Mapping[str, Look]) -> bytes:
    """A PNG of one pair of axes, with a key of names below; equal bytes for equal input, whatever matplotlibrc says."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines = _key_lines(key)
    below = KEY_LINE * len(lines) + (0.1 if lines else 0)
    height = sketch.height + below
    with style.context(["default", {**STYLE, **_colours(theme)}]):
        layout = ConstrainedLayoutEngine(rect=(0, below / height, 1, 1 - below / height))
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout)
        canvas = FigureCanvasAgg(figure)
        sketch.draw(figure.add_subplot(), theme, by_name)
        for number, (text, look) in enumerate(lines):
            _write_key(figure, text, look, (below - 0.12 - number * KEY_LINE) / height)
        canvas.draw()
    file, drawn = io.BytesIO(), Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    drawn.quantize(256).save(file, "PNG", optimize=True)  # a third of the bytes, and no colour looks different
    return file.getvalue()


def _colours(theme: Theme) -> dict[str, Any]:
    ink = ("text.color", "axes.labelcolor")
    faint = ("xtick.color", "ytick.color", "axes.edgecolor")
    paper = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    return {
        **dict.fromkeys(ink, theme.ink),
        **dict.fromkeys(faint, theme.faint),
        **dict.fromkeys(paper, theme.paper),
        "grid.color": theme.grid,
    }


def _key_lines(key: Mapping[str, Look]) -> list[tuple[str, Look | None]]:
    """Each name in full, over several lines if it is long; the first one has the variant's mark."""
    lines: list[tuple[str, Look | None]] = []
    for name, look in key.items():
        text = name if look.label == name else f"{look.label}  {name}"
        first, *others = textwrap.wrap(text, KEY_WIDTH, subsequent_indent="    ", break_on_hyphens=False)
        lines += [(first, look), *((other, None) for other in others)]
    return lines


def _write_key(figure: Figure, text: str, look: Look | None, y: float) -> None:
    """``y``: of the figure's height."""
    from matplotlib.lines import Line2D

    figure.text(0.1, y, text, va="center", fontsize=8.5, parse_math=False)
    if look:
        figure.add_artist(
            Line2D(
                [0.02, 0.05, 0.08], [y] * 3, color=look.colour, linestyle=look.dashes, linewidth=1.3,
                marker=look.marker, markersize=4.5, markevery=[1],
            )
        )  # fmt: skip


@dataclass(frozen=True)
class Label:
    """Words that belong to a point, in data coordinates."""

    x: float
    y: float
    text: str
    colour: str = ""
    """Of the line to the point, if there is one."""


PLACES = [
    (
        dx,
        dy,
        "left" if dx > 0 else "right" if dx < 0 else "center",
        "bottom" if dy > 0 else "top" if dy < 0 else "center",
    )
    for reach in (7, 14)
    for dx, dy in ((1, 0), (-1, 0), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8), (0, 1.2), (0, -1.2))
    for dx, dy in ((dx * reach, dy * reach),)
]  # points to the right and up from what is named, the best first


def label_beside(axes: Axes, labels: Sequence[Label], taken: Sequence[Bbox]) -> None:
    """Write each label where it covers least of what is there; ``taken`` are boxes in pixels."""
    renderer, inside = axes.figure.canvas.get_renderer(), axes.get_window_extent()  # type: ignore[attr-defined]
    boxes = list(taken)
    for label in labels:
        found = []
        for order, (dx, dy, horizontal, vertical) in enumerate(PLACES):
            text = axes.annotate(
                label.text, (label.x, label.y), (dx, dy), textcoords="offset points", ha=horizontal, va=vertical,
                fontsize=9, parse_math=False,
            )  # fmt: skip
            box = text.get_window_extent(renderer)
            outside = box.width * box.height - _shared(box, inside)
            found.append((outside * 2 + sum(_shared(box, other) for other in boxes), order, text, box))
        found.sort(key=lambda place: place[:2])
        for _, _, text, _ in found[1:]:
            text.remove()
        boxes.append(found[0][3])


def legend_above(axes: Axes, names: Sequence[str], by_name: Mapping[str, Look]) -> None:
    """Each variant's mark and label; not where a key below has them."""
    from matplotlib.lines import Line2D

    if needs_key(list(by_name)):
        return
    marks = [
        Line2D([], [], color=look.colour, marker=look.marker, linewidth=0, markersize=5, label=look.label)
        for look in map(by_name.__getitem__, names)
    ]
    legend = axes.figure.legend(handles=marks, loc="outside upper left", ncols=min(3, len(marks)), handletextpad=0.2)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _shared(one: Bbox, other: Bbox) -> float:
    """The area that two boxes share, in square pixels."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(0.0, width) * max(0.0, height)


def label_ends(axes: Axes, labels: Sequence[Label]) -> None:
    """Write labels in a column right of the axes, none over another, each with a line to its point."""
    axes.figure.canvas.draw()  # so that the axes have their height
    gap = LABEL_HEIGHT * DPI / 72 / axes.get_window_extent().height
    transform = axes.transData + axes.transAxes.inverted()
    wanted = [(float(transform.transform((label.x, label.y))[1]), label) for label in labels]
    wanted.sort(key=lambda pair: pair[0])
    for y, (_, label) in zip(apart([y for y, _ in wanted], gap), wanted, strict=True):
        axes.annotate(
            label.text, (label.x, label.y), (1.05, y), textcoords="axes fraction", va="center", fontsize=9,
            parse_math=False, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 0.7, "linestyle": ":", "shrinkB": 0},
        )  # fmt: skip


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places in [0, 1], moved as little as a simple rule can so that neighbours are ``gap`` apart.

    Groups of places that are too close are centred on their mean, and joined with those that they come to touch.
    """
    gap = min(gap, 1 / max(1, len(places) - 1))
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _start(groups[-1], gap) < _start(groups[-2], gap) + len(groups[-2]) * gap:
            last = groups.pop()
            groups[-1] += last
    return [_start(group, gap) + i * gap for group in groups for i in range(len(group))]


def _start(group: Sequence[float], gap: float) -> float:
    length = (len(group) - 1) * gap
    return min(max(sum(group) / len(group) - length / 2, 0), 1 - length)
