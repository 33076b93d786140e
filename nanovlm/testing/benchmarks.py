"""What every benchmark must do: a dataset whose test split is asked, and whose answers are scored."""

from __future__ import annotations

import json
import math
from typing import Any

from nanovlm.data.conversation import IMAGE_MARK
from nanovlm.data.dataset import Benchmark, Sample
from nanovlm.evaluation.evaluator import Evaluation, Item
from nanovlm.testing.checks import NotHere, Subject, Violation, check, doing
from nanovlm.testing.datasets import opened, samples, wanting

WRONG = ("xyzzy", "")  # of no language: some scores look for a "no" or a letter
WORST = 0.5  # scores that count letters give a little for any word
ODD = ("no such answer", " ", "\n\n", "?" * 500, "Ω ≠ 1 \U0001f600", "<image>", "A, B, C and D", "0", "-1e9", "(((")
CONTROLS = {"shuffled": 0.5, "no_image": 0.25, "bare_decoder": 0.0}


def questions(subject: Subject) -> tuple[Benchmark, list[Sample]]:
    """The benchmark, and all its questions. NotHere for a dataset that is for training only."""
    if not issubclass(subject.cls, Benchmark):
        raise NotHere("it is for training only, no Benchmark")
    benchmark = opened(subject, "test")
    assert isinstance(benchmark, Benchmark)
    if benchmark.streaming:
        raise Violation("streams its test split: a benchmark has a number of questions, so let it have a length")
    asked = [sample for _, sample in samples(subject, benchmark, "test")]
    if not asked:
        wanted = wanting(subject, ["test"])
        raise Violation(f"is a Benchmark without a question in its test split by Config.tiny(): {wanted}")
    return benchmark, asked


@check("dataset")
def questions_can_be_asked(subject: Subject) -> None:
    """asks a question in words, with room for the answer, and has a right answer to show beside it."""
    benchmark, asked = questions(subject)
    most = benchmark.max_new_tokens
    if not isinstance(most, int) or most < 1:
        raise Violation(f"has max_new_tokens={most!r}: an answer takes at least one token")
    for sample in asked:
        prompt, answer = benchmark.prompt(sample), benchmark.answer(sample)
        for what, words in (("prompt", prompt), ("answer", answer)):
            if not isinstance(words, str) or not words.strip():
                raise Violation(f"has {words!r} as the {what} of sample {sample.id!r}: it is a text")
        if sample.images and (marks := prompt.count(IMAGE_MARK)) not in (0, len(sample.images)):
            raise Violation(
                f"asks about {len(sample.images)} pictures with {marks} marks ({IMAGE_MARK}) in the prompt of sample "
                f"{sample.id!r}: write one for each, or none and all come first"
            )


@check("dataset")
def knows_right_from_wrong(subject: Subject) -> None:
    """scores its own answer with 1, and an empty or a wrong one with nothing or little."""
    benchmark, asked = questions(subject)
    for sample in asked:
        answer = benchmark.answer(sample)
        scores = {prediction: benchmark.score(prediction, sample) for prediction in (answer, *WRONG)}
        expected = {answer: "1"} | dict.fromkeys(WRONG, f"0, or less than {WORST},")
        for prediction, found in scores.items():
            if found != 1 if prediction == answer else found >= WORST:
                raise Violation(
                    f"scores {prediction!r} with {found}, where the answer of sample {sample.id!r} is {answer!r} and "
                    f"{expected[prediction]} is expected"
                )


@check("dataset")
def scores_stay_in_bounds(subject: Subject) -> None:
    """scores whatever a model may say, always the same and between 0 and 1."""
    benchmark, asked = questions(subject)
    for sample in asked:
        answer = benchmark.answer(sample)
        for prediction in (*ODD, f"{answer} {answer}", f"Not {answer}.", answer.swapcase()):
            with doing(f"to score {prediction[:30]!r}", subject):
                found = benchmark.score(prediction, sample)
                again = benchmark.score(prediction, sample)
            if not isinstance(found, int | float) or not 0 <= found <= 1:
                raise Violation(f"scores {prediction[:30]!r} with {found!r}: a score is a number from 0 to 1")
            if found != again:
                raise Violation(f"scores {prediction[:30]!r} with {found}, and then with {again}")


@check("dataset")
def measures_are_figures(subject: Subject) -> None:
    """has figures of its own, if any, that JSON can keep and that hide none of the core's."""
    benchmark, asked = questions(subject)
    items = [_item(benchmark, sample, right=number % 2 == 0) for number, sample in enumerate(asked)]
    items.append(Item("skipped", "", "", "", 0.0, skipped="no picture"))
    for controls in ({}, CONTROLS):
        with doing(f"to measure {len(items)} answers, with the controls {sorted(controls) or 'not asked'}", subject):
            figures: dict[str, Any] = benchmark.measures(items, controls)
            written = json.dumps(figures)
        if hidden := sorted(figures.keys() & Evaluation("", items).summary().keys()):
            raise Violation(f"calls a measure {hidden[0]!r}, which all benchmarks' results have: give it another name")
        if any(isinstance(value, float) and not math.isfinite(value) for value in _numbers(json.loads(written))):
            raise Violation(f"has measures that are no finite numbers: {written}")
        for name in figures:
            if name.endswith("_ci95") and f"{name.removesuffix('_ci95')}_accuracy" not in figures:
                raise Violation(f"measures {name}, but no {name.removesuffix('_ci95')}_accuracy that it belongs to")


def _item(benchmark: Benchmark, sample: Sample, right: bool) -> Item:
    answer = benchmark.answer(sample)
    said = answer if right else WRONG[0]
    return Item(sample.id, benchmark.prompt(sample), said, answer, float(right), sample.category, sample.subcategory)


def _numbers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [number for each in value.values() for number in _numbers(each)]
    return [number for each in value for number in _numbers(each)] if isinstance(value, list) else [value]
