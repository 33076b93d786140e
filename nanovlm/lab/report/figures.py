"""The figures of a comparison: what accuracy costs, where it comes from, and how the loss went down."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nanovlm.evaluation.evaluator import numbered
from nanovlm.lab.comparison import Comparison
from nanovlm.lab.report.accuracy_figures import accuracy_figure, category_figure
from nanovlm.lab.report.curves import loss_curve
from nanovlm.lab.report.drawing import DARK, LIGHT, Look, Sketch, Theme, looks, needs_key, render
from nanovlm.lab.report.loss_figures import loss_figure


@dataclass(frozen=True)
class Picture:
    """A figure in two themes, as PNG. ``text`` says what it shows in numbers, for those who do not see it."""

    name: str
    title: str
    text: str
    caption: str
    light: bytes
    dark: bytes


def draw_figures(comparison: Comparison) -> list[Picture]:
    """All figures for which there is something to draw, accuracies first."""
    files = numbered([re.sub(r"[^A-Za-z0-9.-]+", "-", benchmark) for benchmark in comparison.benchmarks])
    sketches: list[Sketch | None] = []
    for benchmark, file in zip(comparison.benchmarks, files, strict=True):
        sketches += [accuracy_figure(comparison, benchmark, file), category_figure(comparison, benchmark, file)]
    curves = {variant.name: curve for variant in comparison.variants if (curve := loss_curve(variant))}
    if curves:
        sketches += [loss_figure(comparison, curves, "samples"), loss_figure(comparison, curves, "time")]
    return [_finished(comparison, sketch) for sketch in sketches if sketch]


def _finished(comparison: Comparison, sketch: Sketch) -> Picture:
    def rendered(theme: Theme) -> bytes:
        by_name = looks([variant.name for variant in comparison.variants], comparison.baseline, theme)
        key: dict[str, Look] = {name: by_name[name] for name in sketch.variants} if needs_key(list(by_name)) else {}
        return render(sketch, theme, by_name, key)

    text = f"{sketch.title}. {'; '.join(sketch.said)}."
    return Picture(sketch.name, sketch.title, text, " ".join(sketch.caption), rendered(LIGHT), rendered(DARK))
