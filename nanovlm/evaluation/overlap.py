"""Which questions of a benchmark are about samples that the run trains on: a score on those says little."""

from __future__ import annotations

from collections.abc import Sequence

from nanovlm.blueprint import Recipe
from nanovlm.data.mixture import Mixture
from nanovlm.data.stream import Stream
from nanovlm.evaluation.evaluator import Questions


def find_overlap(recipe: Recipe, data: Mixture | Stream, benchmarks: Sequence[Questions]) -> list[str]:
    """Count it in each of the ``benchmarks``, and say it.

    Samples are told by their ids, which mean something within one component only; what is held out is not trained on.
    Nothing is known of a stream before it is read.
    """
    if isinstance(data, Stream):
        return []
    notes = []
    for questions, part in zip(benchmarks, recipe.benchmarks, strict=True):
        same = [d for d, dataset in enumerate(recipe.datasets) if dataset.cls is part.cls]
        trained = {data.datasets[d].id(i) for d in same for i in data.train[d].tolist()}
        questions.trained_on = sum(sample.id in trained for sample in questions.samples)
        if questions.trained_on:
            said = trained_on_in_words(questions.trained_on, len(questions.samples))
            notes.append(f"{questions.name}: {said}; its accuracy will say little about new ones")
    return notes


def trained_on_in_words(count: int, questions: int) -> str:
    """Of how many questions the samples were trained on."""
    return f"{count:,} of {questions:,} questions have the id of a sample that is trained on"
