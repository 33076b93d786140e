"""The pictures of flipped questions: read again from the benchmark that the baseline's run names."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from nanovlm.blueprint import Recipe
from nanovlm.data.dataset import Sample
from nanovlm.data.images import ImageSource, open_image
from nanovlm.errors import SkipSample, named
from nanovlm.evaluation.evaluator import Questions
from nanovlm.experiment import load_experiment
from nanovlm.lab.comparison import Comparison, Flip
from nanovlm.plugins import load_plugins
from nanovlm.training.launch import open_benchmarks
from nanovlm.training.run import Run

SIZE = 160  # pixels, of the longer side
MOST = 4  # pictures of one question

Key = tuple[str, str, str, str]
"""Benchmark, id, question and answer."""


def key_of(flip: Flip) -> Key:
    return flip.benchmark, flip.id, flip.question, flip.answer


@dataclass(frozen=True)
class Thumbnails:
    """The small pictures of each question, as data URIs, and what could not be shown, in words."""

    by_question: dict[Key, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def of(self, flip: Flip) -> list[str]:
        return self.by_question.get(key_of(flip), [])


def thumbnails(comparison: Comparison, flips: Sequence[Flip]) -> Thumbnails:
    """Of the questions of ``flips``; a report can do without them, so that whatever goes wrong is no error here."""
    baseline = next(variant for variant in comparison.variants if variant.name == comparison.baseline)
    if not flips or not baseline.runs:
        return Thumbnails()
    try:
        found = _find(_open(baseline.runs[0].folder), {key_of(flip) for flip in flips})
    except Exception as error:  # a plugin's, or a moved file's
        return Thumbnails(
            notes=[
                f"The flipped questions are without pictures, as their benchmark could not be opened: {named(error)}"
            ]
        )
    return found


def _open(run: Path) -> list[Questions]:
    """The benchmarks of a run, by its own plugins."""
    chosen = Run(run, "")
    experiment = load_experiment(chosen.experiment)
    return open_benchmarks(Recipe.of(experiment, load_plugins(chosen.plugin_files), resolve=False))


def _find(benchmarks: Iterable[Questions], wanted: set[Key]) -> Thumbnails:
    by_question: dict[Key, list[str]] = {}
    unreadable = most = 0
    ids = {(benchmark, name) for benchmark, name, _, _ in wanted}
    for questions in benchmarks:
        for sample in questions.samples:
            if not isinstance(sample, Sample) or (questions.name, sample.id) not in ids:
                continue
            asked = questions.benchmark
            key = questions.name, sample.id, asked.prompt(sample), asked.answer(sample)
            if key in wanted and key not in by_question:
                by_question[key], lost = _small(sample.images[:MOST])
                unreadable, most = unreadable + lost, max(most, len(sample.images))
    notes = [f"Pictures of flipped questions that cannot be read: {unreadable:,}."] if unreadable else []
    if missing := len(wanted - by_question.keys()):
        notes.append(f"Flipped questions without a picture, as their benchmark no longer has them: {missing:,}.")
    if most > MOST:
        notes.append(f"Of flipped questions with up to {most} pictures the first {MOST} are shown.")
    return Thumbnails(by_question, notes)


def _small(images: Iterable[ImageSource]) -> tuple[list[str], int]:
    """Data URIs, and how many pictures cannot be read."""
    found, unreadable = [], 0
    for image in images:
        try:
            found.append(data_uri(open_image(image)))
        except SkipSample:
            unreadable += 1
    return found, unreadable


def data_uri(image: Image.Image) -> str:
    """A picture of at most ``SIZE`` pixels a side, as PNG or JPEG, whichever is shorter."""
    image = image.copy()
    image.thumbnail((SIZE, SIZE))
    kinds = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 80})):
        file = io.BytesIO()
        image.save(file, kind, **options)
        kinds[kind] = file.getvalue()
    kind = min(kinds, key=lambda kind: len(kinds[kind]))
    return embedded(kind, kinds[kind])


def embedded(kind: str, content: bytes) -> str:
    """``content`` as a URI that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
