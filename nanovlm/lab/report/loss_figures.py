"""How the training loss went down: by samples, and by time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from nanovlm.lab.comparison import Comparison
from nanovlm.lab.report.curves import SMOOTHED, Curve, Values
from nanovlm.lab.report.drawing import LOG_FROM, MOST_LABELLED, ON_LOG, Label, Look, Sketch, Theme, label_ends

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 3.2  # inches


def loss_figure(comparison: Comparison, curves: Mapping[str, Curve], by: Literal["samples", "time"]) -> Sketch:
    """The mean over each variant's seeds, and their range."""
    unit, seconds = _time_unit(curves)
    caption = [
        "Lines: means over the seeds; bands: their range.",
        f"Smoothed by a running mean over {100 * SMOOTHED:.0f} % of a run.",
    ]
    if by == "time":
        caption.append("Without evaluations; what it takes depends on the machine.")
    if lost := sum(curve.lost for curve in curves.values()):
        caption.append(f"{lost:,} logged steps without a finite loss are left out.")
    if missing := [variant.name for variant in comparison.variants if variant.name not in curves]:
        caption.append(f"Without a curve: {', '.join(missing)}.")

    def draw(axes: Axes, theme: Theme, by_name: Mapping[str, Look]) -> None:
        axes.set_xlabel("samples" if by == "samples" else f"time of training, {unit}")
        places = {name: curve.samples if by == "samples" else curve.seconds / seconds for name, curve in curves.items()}
        _draw_curves(axes, curves, places, by_name)

    said = [_described(name, curve, by, unit, seconds) for name, curve in curves.items()]
    return Sketch(f"loss-by-{by}", f"Training loss by {by}", said, caption, draw, HEIGHT, list(curves))


def _described(name: str, curve: Curve, by: str, unit: str, seconds: float) -> str:
    after = f"{curve.samples[-1]:,.0f} samples" if by == "samples" else f"{curve.seconds[-1] / seconds:.3g} {unit}"
    many = f" ({curve.lowest[-1]:.3f} to {curve.highest[-1]:.3f} over {curve.runs} seeds)" if curve.runs > 1 else ""
    return f"{name}: from {curve.loss[0]:.3f} to {curve.loss[-1]:.3f}{many} in {after}"


def _draw_curves(
    axes: Axes, curves: Mapping[str, Curve], places: Mapping[str, Values], by_name: Mapping[str, Look]
) -> None:
    """``places``: where on the horizontal axis a curve's points stand."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_ylabel("training loss")
    lowest = min(curve.lowest.min() for curve in curves.values())
    if lowest > 0 and max(curve.highest.max() for curve in curves.values()) > LOG_FROM * lowest:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=ON_LOG))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    labels = []
    for name, curve in curves.items():
        look, xs = by_name[name], places[name]
        axes.plot(xs, curve.loss, look.dashes, color=look.colour, linewidth=1.3)
        axes.fill_between(xs, curve.lowest, curve.highest, color=look.colour, alpha=0.15, linewidth=0)
        labels.append(Label(float(xs[-1]), float(curve.loss[-1]), look.label, look.colour))
    axes.set_xlim(0, max(label.x for label in labels))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    if len(labels) <= MOST_LABELLED:  # else the key has them
        label_ends(axes, labels)


def _time_unit(curves: Mapping[str, Curve]) -> tuple[str, float]:
    """The unit of the time axis, and its seconds."""
    longest = max(curve.seconds[-1] for curve in curves.values())
    return ("seconds", 1.0) if longest < 180 else ("minutes", 60.0) if longest < 3 * 3600 else ("hours", 3600.0)
