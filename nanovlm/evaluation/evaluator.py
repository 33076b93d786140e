"""Score a model on a benchmark: greedy, batched, in eval mode, one JSON line an item."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nanovlm.components import Benchmark, Sample
from nanovlm.errors import SkipSample
from nanovlm.evaluation.controls import shuffled, without_images
from nanovlm.evaluation.metrics import accuracy, wilson_interval
from nanovlm.generation import Prompt, generate
from nanovlm.model import VisionLanguageModel

BATCH = 32  # questions asked together


@dataclass(frozen=True)
class Item:
    """One question, what the model said, and how right it was. ``skipped`` says why it could not be asked (score 0)."""

    id: str
    question: str
    prediction: str
    answer: str
    score: float
    category: str | None = None
    skipped: str | None = None


@dataclass
class Evaluation:
    """A benchmark's result. ``controls`` holds the accuracies with shuffled pictures and with none."""

    benchmark: str
    items: list[Item]
    controls: dict[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        scores = [item.score for item in self.items]
        by_category: dict[str, list[float]] = defaultdict(list)
        for item in self.items:
            if item.category is not None:
                by_category[item.category].append(item.score)
        return {
            "accuracy": accuracy(scores),
            "ci95": list(wilson_interval(scores)),
            "questions": len(scores),
            "skipped": dict(Counter(item.skipped for item in self.items if item.skipped)),
            "categories": {name: accuracy(values) for name, values in sorted(by_category.items())},
            "controls": self.controls,
        }

    def write(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.part")
        part.write_text(
            "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in self.items), encoding="utf-8"
        )
        part.replace(file)


class Questions:
    """A benchmark's samples, read once: the same ones at every evaluation, a control included."""

    def __init__(self, name: str, benchmark: Benchmark, limit: int = 0) -> None:
        self.name, self.benchmark = name, benchmark
        count = min(limit or len(benchmark), len(benchmark))
        self.samples = [_read(benchmark, i) for i in range(count)]

    def evaluate(self, model: VisionLanguageModel, controls: bool, seed: int = 0) -> Evaluation:
        """Ask every question; with ``controls`` also with shuffled pictures and with none."""
        evaluation = Evaluation(self.name, list(self._ask(model, self.samples)))
        if controls and any(sample.images for sample in self.samples if isinstance(sample, Sample)):
            for name, change in _controls(seed).items():
                changed = iter(change([sample for sample in self.samples if isinstance(sample, Sample)]))
                samples = [next(changed) if isinstance(sample, Sample) else sample for sample in self.samples]
                evaluation.controls[name] = accuracy([item.score for item in self._ask(model, samples)])
        return evaluation

    def _ask(self, model: VisionLanguageModel, samples: Sequence[Sample | Item]) -> Iterator[Item]:
        for start in range(0, len(samples), BATCH):
            yield from self._ask_batch(model, samples[start : start + BATCH])

    def _ask_batch(self, model: VisionLanguageModel, samples: Sequence[Sample | Item]) -> list[Item]:
        """Items in the order of ``samples``; one whose picture cannot be read is skipped, and wrong."""
        items: dict[int, Item] = {}
        examples = {}
        for i, sample in enumerate(samples):
            if isinstance(sample, Item):
                items[i] = sample
                continue
            try:
                prompt = Prompt(self.benchmark.prompt(sample), sample.images)
                examples[i] = prompt.example(model.text, model.vision_encoder.image)
            except SkipSample as skip:
                items[i] = self._item(sample, "", skip.reason)
        for i, prediction in zip(
            examples, generate(model, list(examples.values()), self.benchmark.max_new_tokens), strict=True
        ):
            items[i] = self._item(samples[i], prediction)  # type: ignore[arg-type]
        return [items[i] for i in range(len(samples))]

    def _item(self, sample: Sample, prediction: str, skipped: str | None = None) -> Item:
        benchmark = self.benchmark
        score = 0.0 if skipped else benchmark.score(prediction, sample)
        return Item(
            sample.id, benchmark.prompt(sample), prediction, benchmark.answer(sample), score, sample.category, skipped
        )


def numbered(names: Sequence[str]) -> list[str]:
    """Benchmarks' names as a run reports them: the second ``shapes`` of an experiment is ``shapes-2``."""
    numbers = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return [name if number == 1 else f"{name}-{number}" for name, number in zip(names, numbers, strict=True)]


def _controls(seed: int) -> dict[str, Callable[[Sequence[Sample]], list[Sample]]]:
    return {"shuffled": lambda samples: shuffled(samples, seed), "no_image": without_images}


def _read(benchmark: Benchmark, index: int) -> Sample | Item:
    """A sample, or, if it is broken, the item that says so."""
    try:
        return benchmark[index]
    except SkipSample as skip:
        return Item(benchmark.id(index), "", "", "", 0.0, skipped=skip.reason)
