"""What a report says and in which order, whatever it is written as."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nanovlm.lab.comparison import Comparison, Score
from nanovlm.lab.costs import SAME_FLOPS, SAME_TIME
from nanovlm.lab.report.figures import Picture
from nanovlm.lab.report.tables import (
    Table,
    accuracy_table,
    category_table,
    cost_table,
    flip_table,
    percent,
    unfinished_table,
    validation_table,
    variants_table,
)
from nanovlm.lab.verdict import LEVEL, PAIRED

FLIPPED = "Flipped questions"  # the section that the HTML shows them in
READING = (
    "Intervals are 95 %. Both the seeds and the questions are taken as samples of many more; with one seed the "
    "questions only, so that it says nothing of other seeds.",
    "With two or three seeds intervals are wide, for so few hardly tell how much seeds differ: more seeds narrow them "
    "sooner than more questions do.",
    "A difference is to the baseline, by the same seeds on the same questions, in percentage points.",
    "p (Holm) is the probability of so large a difference if there were none, corrected for the number of variants "
    f"(Holm 1979). From {LEVEL} on, no difference is claimed.",
    "Detectable: a true difference smaller than this would be missed more often than one time in five.",
    "Cheaper and dearer are of the whole training: by its FLOPs, or by its time where FLOPs are equal. Both are named "
    f"where they disagree. Up to {100 * SAME_FLOPS:.0f} % of FLOPs or {100 * SAME_TIME:.0f} % of time count as equal. "
    "Time counts only where all runs of one variant were faster than all of the other, on the same hardware.",
    "FLOPs a sample are an average over the samples that were trained on. The plan shows those of the longest sample, "
    "which are more.",
    "The controls are the same questions with the pictures shuffled between them, without pictures (no image), and "
    "without pictures by the language decoder before it was trained (bare decoder): what is right without looking.",
)


@dataclass(frozen=True)
class Sentence:
    """A verdict in words; ``kind`` is ``better``, ``worse`` or ``unsure``."""

    text: str
    kind: str = "unsure"


@dataclass(frozen=True)
class Verdict:
    """What is said of one benchmark, or of the validation loss."""

    about: str
    sentences: tuple[Sentence, ...]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    title: str
    texts: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.texts or self.tables or self.pictures)


@dataclass(frozen=True)
class Report:
    """All but the flipped questions themselves."""

    title: str
    summary: str
    verdicts: tuple[Verdict, ...]
    pairing: str
    unpaired: tuple[str, ...]
    sections: tuple[Section, ...]
    reading: tuple[str, ...] = READING


def report_of(comparison: Comparison, pictures: Sequence[Picture], notes: Sequence[str] = ()) -> Report:
    """``notes`` are said beside the comparison's own."""

    def shown(*beginnings: str) -> list[Picture]:
        return [picture for picture in pictures if picture.name.startswith(beginnings)]

    benchmarks = comparison.benchmarks
    sections = [
        Section(
            "Accuracy", (), [accuracy_table(comparison, benchmark) for benchmark in benchmarks], shown("accuracy-")
        ),
        Section("Costs", (), [cost_table(comparison)]),
        Section("Loss", (), _present([validation_table(comparison)]), shown("loss-")),
        Section(
            "Categories",
            (),
            _present([category_table(comparison, benchmark) for benchmark in benchmarks]),
            shown("categories-"),
        ),
        Section(FLIPPED, _flips_in_words(comparison), _present([flip_table(comparison.flips)])),
        Section("What was compared", (), _present([variants_table(comparison), unfinished_table(comparison)])),
        Section("Notes", (*comparison.notes, *notes)),
    ]
    return Report(
        title=comparison.name,
        summary=_summary(comparison),
        verdicts=tuple(verdict for verdict in _verdicts(comparison) if verdict.sentences or verdict.flags),
        pairing=_pairing(comparison),
        unpaired=comparison.unpaired,
        sections=tuple(section for section in sections if not section.is_empty),
    )


def _summary(comparison: Comparison) -> str:
    """The baseline and what it reaches."""
    baseline = next(variant for variant in comparison.variants if variant.name == comparison.baseline)
    seeds = "one seed" if len(baseline.seeds) == 1 else f"{len(baseline.seeds)} seeds"
    reached = [
        f"{percent(score.accuracy)} on {benchmark} ({score.questions:,} questions)"
        for benchmark, score in baseline.scores.items()
    ]
    what = f"Baseline {baseline.name}, {seeds}"
    text = f"{what}: {', '.join(reached)}." if reached else f"{what}."
    if missing := len(comparison.unfinished):
        text += " One run has no result." if missing == 1 else f" {missing:,} runs have no result."
    return text


def _verdicts(comparison: Comparison) -> list[Verdict]:
    found = []
    for benchmark in comparison.benchmarks:
        scores = {v.name: v.scores[benchmark] for v in comparison.variants if benchmark in v.scores}
        flags = tuple(f"{name} on {benchmark}: {flag}" for name, score in scores.items() for flag in score.flags)
        sentences = tuple(Sentence(score.sentence, _kind(score)) for score in scores.values() if score.sentence)
        found.append(Verdict(benchmark, sentences, flags))
    losses = [
        Sentence(
            variant.validation_sentence, _direction(variant.validation_p_holm, -variant.validation_difference.value)
        )
        for variant in comparison.variants
        if variant.validation_sentence and variant.validation_difference
    ]
    return [*found, Verdict("validation loss", tuple(losses))]


def _kind(score: Score) -> str:
    return _direction(score.p_holm, score.difference.value) if score.difference else "unsure"


def _direction(p_holm: float | None, gained: float) -> str:
    if p_holm is None or p_holm >= LEVEL:
        return "unsure"
    return "better" if gained > 0 else "worse"


def _pairing(comparison: Comparison) -> str:
    if comparison.unpaired:
        return "Not paired. Runs of one seed differ in more than the variants' settings:"
    return f"Paired: {PAIRED}." if comparison.has_pairs else ""


def _flips_in_words(comparison: Comparison) -> tuple[str, ...]:
    """How many, of how many that were answered differently well at all."""
    changed = sum(score.differing for variant in comparison.variants for score in variant.scores.values())
    if not changed:
        return ()
    return (
        f"Of {changed:,} answers that are better or worse than the baseline's with any seed, {len(comparison.flips):,} "
        "are so with most seeds, and only these are listed: the others may be chance.",
    )


def _present(tables: Iterable[Table | None]) -> list[Table]:
    return [table for table in tables if table]
