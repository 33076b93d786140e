"""The tables of a report, as data: Markdown and HTML show the same ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten

from nanovlm.lab.comparison import Comparison, Flip, Score, VariantResult
from nanovlm.lab.diff import shown
from nanovlm.lab.statistics import Estimate
from nanovlm.lab.verdict import probability
from nanovlm.training.clock import per_second

UNKNOWN = "not known"
CONTROLS = ("shuffled", "no_image", "bare_decoder")  # in this order; others behind them
NO_CATEGORY = "none"


@dataclass(frozen=True)
class Cell:
    """``detail`` is said smaller, behind the text; ``order`` is what numbers are sorted by."""

    text: str = ""
    detail: str = ""
    order: float | None = None

    def __str__(self) -> str:
        return f"{self.text} {self.detail}".strip()


@dataclass(frozen=True)
class Table:
    """``rows`` begin with what they are about; ``note`` explains the columns."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """By column: whether it holds numbers."""
        return tuple(any(row[c].order is not None for row in self.rows) for c in range(len(self.columns)))


Column = tuple[str, Sequence[Cell]]


def table(caption: str, columns: Iterable[Column], note: str = "") -> Table:
    """A table by its columns, of which those without any content are left out."""
    kept = [(title, cells) for title, cells in columns if any(cell.text for cell in cells)]
    rows = tuple(zip(*(cells for _, cells in kept), strict=True))
    return Table(caption, tuple(title for title, _ in kept), rows, note)


def variants_table(comparison: Comparison) -> Table:
    """What was compared."""
    variants = comparison.variants
    settings = [
        "the baseline" if variant.name == comparison.baseline else _settings(variant.changes) for variant in variants
    ]
    return table(
        "Variants",
        [
            ("variant", _names(variants)),
            ("what differs", [Cell(text) for text in settings]),
            ("seeds", [Cell(", ".join(map(str, variant.seeds))) for variant in variants]),
        ],
    )


def accuracy_table(comparison: Comparison, benchmark: str) -> Table:
    """One benchmark: accuracy, the difference to the baseline, and the controls."""
    chosen = [variant for variant in comparison.variants if benchmark in variant.scores]
    scores = [variant.scores[benchmark] for variant in chosen]
    counts = sorted({score.questions for score in scores})
    controls = _ordered_controls(scores)
    asked = f"{counts[0]:,} questions" if len(counts) == 1 else ""
    columns: list[Column] = [
        ("variant", _names(chosen)),
        ("questions", [Cell() if asked else _count(score.questions) for score in scores]),
        ("accuracy, %", [_percent(score.accuracy) for score in scores]),
        ("difference, points", [_points(score.difference) for score in scores]),
        ("p (Holm)", [_p(score.p_holm) for score in scores]),
        ("p (McNemar)", [_p(score.mcnemar) for score in scores]),
        ("detectable, points", [_detectable(score) for score in scores]),
    ]
    for name in controls:
        columns.append((f"{name.replace('_', ' ')}, %", [_share(score.controls.get(name)) for score in scores]))
    return table(f"Accuracy on {benchmark}" + (f", {asked}" if asked else ""), columns)


def validation_table(comparison: Comparison) -> Table | None:
    chosen = [variant for variant in comparison.variants if variant.validation_loss]
    if not chosen:
        return None
    return table(
        "Validation loss",
        [
            ("variant", _names(chosen)),
            ("loss", [_loss(variant.validation_loss, "") for variant in chosen]),
            ("difference", [_loss(variant.validation_difference, "+") for variant in chosen]),
            ("p (Holm)", [_p(variant.validation_p_holm) for variant in chosen]),
        ],
        "The mean over the targets of the held-out samples; lower is better.",
    )


def cost_table(comparison: Comparison) -> Table:
    """What each variant took; medians over its runs."""
    variants, costs = comparison.variants, [variant.costs for variant in comparison.variants]
    return table(
        "What each variant took",
        [
            ("variant", _names(variants)),
            ("parameters", [_measured(cost.parameters, scaled) for cost in costs]),
            ("image tokens", [_measured(cost.image_tokens, "{:,.0f}".format) for cost in costs]),
            ("FLOPs a sample", [_measured(cost.flops_per_sample, scaled) for cost in costs]),
            ("samples", [_measured(cost.samples, "{:,.0f}".format) for cost in costs]),
            ("samples/s", [_measured(cost.samples_per_second, per_second) for cost in costs]),
            ("peak memory", [_measured(cost.peak_memory_bytes, gibibytes) for cost in costs]),
            ("wall time", [_measured(cost.wall_seconds, duration) for cost in costs]),
            ("skipped samples", [_measured(cost.skipped_samples, "{:,.0f}".format) for cost in costs]),
        ],
        "Medians over the runs. FLOPs: forward and backward; wall time: of a run, evaluations included.",
    )


def category_table(comparison: Comparison, benchmark: str) -> Table | None:
    """The accuracy by category, a column for each variant."""
    chosen = [variant for variant in comparison.variants if benchmark in variant.scores]
    categories = categories_of(comparison, benchmark)
    if not categories:
        return None
    columns: list[Column] = [("category", [Cell(category) for category in categories])]
    for variant in chosen:
        found = variant.scores[benchmark].categories
        columns.append((f"{variant.name}, %", [_percent(found.get(category)) for category in categories]))
    return table(f"Accuracy on {benchmark} by category", columns)


def categories_of(comparison: Comparison, benchmark: str) -> list[str]:
    """Those of all variants, in their order; subcategories (``category/subcategory``) behind their category."""
    found = dict.fromkeys(
        category
        for variant in comparison.variants
        if benchmark in variant.scores
        for category in variant.scores[benchmark].categories
    )
    mains = dict.fromkeys(category.partition("/")[0] for category in found)
    return [category for main in mains for category in found if category.partition("/")[0] == main]


def flip_table(flips: Sequence[Flip]) -> Table | None:
    """How many questions each variant gained and lost, by category."""
    if not flips:
        return None
    gained, lost = Counter[tuple[str, str, str]](), Counter[tuple[str, str, str]]()
    for flip in flips:
        (gained if flip.gained > 0 else lost)[flip.benchmark, flip.variant, flip.category or NO_CATEGORY] += 1
    variants = list(dict.fromkeys(flip.variant for flip in flips))
    groups = sorted(gained | lost, key=lambda group: (variants.index(group[1]), group[0], group[2]))
    return table(
        "Flipped questions by category",
        [
            ("variant", [Cell(variant) for _, variant, _ in groups]),
            ("benchmark", [Cell(benchmark) for benchmark, _, _ in groups]),
            ("category", [Cell(category) for _, _, category in groups]),
            ("gained", [_count(gained[group]) for group in groups]),
            ("lost", [_count(lost[group]) for group in groups]),
            ("net", [Cell(f"{net:+d}" if net else "0", order=net) for net in (gained[g] - lost[g] for g in groups)]),
        ],
        "Gained: the variant is right where the baseline is wrong, in most seeds; lost: the other way round.",
    )


def unfinished_table(comparison: Comparison) -> Table | None:
    runs = comparison.unfinished
    if not runs:
        return None
    return table(
        "Runs without a result",
        [
            ("variant", [Cell(run.variant) for run in runs]),
            ("seed", [_count(run.seed) for run in runs]),
            ("state", [Cell(run.state) for run in runs]),
            ("why", [Cell(run.reason) for run in runs]),
            ("log", [Cell(run.log) for run in runs]),
        ],
    )


def percent(estimate: Estimate) -> str:
    """``61.2 % [58.0, 64.3]``."""
    return f"{estimate.value:.1%} {_interval(estimate)}".replace("%", " %").strip()


def scaled(number: float) -> str:
    """Three digits and a prefix: ``1.23 G``."""
    for size, prefix in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{_three_digits(number / size)} {prefix}"
    return f"{number:,.0f}"


def _three_digits(number: float) -> str:
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"


def gibibytes(number: float) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 0.1 * 2**30 else f"{number / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _names(variants: Iterable[VariantResult]) -> list[Cell]:
    return [Cell(variant.name) for variant in variants]


def _settings(changes: Mapping[str, object]) -> str:
    return ", ".join(f"{key} = {_setting(value)}" for key, value in changes.items())


def _setting(value: object) -> str:
    """A component is said by its name, with the first of its options."""
    if not (isinstance(value, Mapping) and "name" in value):
        return shown(value)
    options = ", ".join(f"{key} = {shown(option)}" for key, option in value.items() if key != "name")
    first = shorten(options, 60, placeholder=" ...")
    return f"{value['name']} ({first})" if options else str(value["name"])


def _ordered_controls(scores: Iterable[Score]) -> list[str]:
    found = dict.fromkeys(name for score in scores for name in score.controls)
    return [*(name for name in CONTROLS if name in found), *(name for name in found if name not in CONTROLS)]


def _count(number: int) -> Cell:
    return Cell(f"{number:,}", order=number)


def _measured(value: float | None, words: Callable[[float], str]) -> Cell:
    return Cell(UNKNOWN) if value is None else Cell(words(value), order=value)


def _share(value: float | None) -> Cell:
    return Cell() if value is None else Cell(f"{100 * value:.1f}", order=value)


def _percent(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell()
    return Cell(f"{100 * estimate.value:.1f}", _interval(estimate), estimate.value)


def _points(difference: Estimate | None) -> Cell:
    if difference is None:
        return Cell()
    return Cell(_signed(100 * difference.value, 1), _interval(difference, "+"), difference.value)


def _loss(estimate: Estimate | None, sign: str) -> Cell:
    if estimate is None:
        return Cell()
    text = _signed(estimate.value, 3) if sign else f"{estimate.value:.3f}"
    return Cell(text, _interval(estimate, sign, scale=1, digits=3), estimate.value)


def _p(value: float | None) -> Cell:
    if value is None:
        return Cell()
    return Cell(probability(value), order=value)


def _detectable(score: Score) -> Cell:
    least = score.difference.detectable if score.difference else None
    return Cell() if least is None else Cell(f"{100 * least:.1f}", order=least)


def _interval(estimate: Estimate, sign: str = "", scale: float = 100, digits: int = 1) -> str:
    """Empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    ends = [scale * end for end in (estimate.low, estimate.high)]
    return f"[{', '.join(_signed(end, digits) if sign else f'{end:.{digits}f}' for end in ends)}]"


def _signed(value: float, digits: int) -> str:
    """With its sign; without one if it is nothing but zeros."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else text[1:]
