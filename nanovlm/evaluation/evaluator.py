"""Score a model on a benchmark: greedy, batched, in eval mode, one JSON line an item."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nanovlm.data.conversation import IMAGE_MARK
from nanovlm.data.dataset import Benchmark, Sample
from nanovlm.errors import DataError, SkipSample
from nanovlm.evaluation.controls import shuffled, without_images
from nanovlm.evaluation.metrics import accuracy, wilson_interval
from nanovlm.files import write_whole
from nanovlm.generation import Prompt, generate, num_tokens
from nanovlm.model import VisionLanguageModel

BATCH = 32  # questions asked together

Change = Callable[[Sequence[Sample]], list[Sample]]


@dataclass(frozen=True)
class Item:
    """One question, what the model said, and how right it was. ``skipped`` says why it could not be asked (score 0)."""

    id: str
    question: str
    prediction: str
    answer: str
    score: float
    category: str | None = None
    subcategory: str | None = None
    skipped: str | None = None


Answered = tuple[Sample, Item]
Batch = Sequence[Sample | Item]  # an item for a sample that is known to be broken
Spread = Callable[[Callable[[Batch], list[Item]], Sequence[Batch]], Iterable[list[Item]]]


@dataclass
class Evaluation:
    """A benchmark's result.

    controls: the accuracies with shuffled pictures, with none, and of the decoder alone before it was trained.
    measures: the benchmark's own figures (see ``Benchmark.measures``).
    trained_on: how many of the questions are about samples that the run trains on (see overlap.py).
    """

    benchmark: str
    items: list[Item]
    controls: dict[str, float] = field(default_factory=dict)
    measures: dict[str, Any] = field(default_factory=dict)
    trained_on: int = 0

    def summary(self) -> dict[str, Any]:
        """As ``summary.json`` has it. A subcategory goes by ``category/subcategory``; no ``trained_on`` is 0."""
        scores = [item.score for item in self.items]
        categories = _by(self.items, lambda item: item.category)
        subcategories = _by(self.items, lambda item: item.subcategory and f"{item.category}/{item.subcategory}")
        return {
            "accuracy": accuracy(scores),
            "ci95": list(wilson_interval(scores)),
            "questions": len(scores),
            "skipped": dict(Counter(item.skipped for item in self.items if item.skipped)),
            "categories": {name: accuracy(values) for name, values in categories.items()},
            "subcategories": {name: accuracy(values) for name, values in subcategories.items()},
            "questions_by_category": {name: len(values) for name, values in (categories | subcategories).items()},
            "controls": self.controls,
            **({"trained_on": self.trained_on} if self.trained_on else {}),
            **self.measures,
        }

    def write(self, file: Path) -> None:
        write_items(self.items, file)


def write_items(items: Sequence[Item], file: Path) -> None:
    """One JSON line an item."""
    write_whole(file, "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items))


def read_items(file: Path) -> list[Item]:
    """What ``write_items`` wrote; none if there is no such file."""
    if not file.is_file():
        return []
    try:
        with file.open(encoding="utf-8") as lines:  # a text may hold what str.splitlines takes for a line's end
            return [Item(**json.loads(line)) for line in lines]
    except (ValueError, TypeError):
        raise DataError(f"{file} is damaged: remove it, and go on without what it held") from None


class Questions:
    """A benchmark's samples, read once: the same ones at every evaluation, a control included."""

    def __init__(self, name: str, benchmark: Benchmark, limit: int = 0) -> None:
        self.name, self.benchmark, self.trained_on = name, benchmark, 0
        count = min(limit or len(benchmark), len(benchmark))
        self.samples = [self._read(i) for i in range(count)]

    def evaluate(
        self,
        model: VisionLanguageModel,
        controls: bool,
        seed: int = 0,
        bare: Sequence[Item] = (),
        spread: Spread = map,
    ) -> Evaluation:
        """Ask every question; with ``controls`` also with shuffled pictures and with none.

        bare: what ``ask_bare_decoder`` gave; one more control, if it was asked these very questions.
        spread: how the batches are asked: one after the other, or by several processes at once.
        """
        items = self._ask(model, self.samples, spread)
        others: dict[str, float] = {}
        if controls and self.has_pictures:
            for name, change in _controls(seed).items():
                others[name] = accuracy([item.score for item in self._ask(model, self._changed(change), spread)])
            if recorded := _same_questions(bare, items):
                others["bare_decoder"] = accuracy([item.score for item in recorded])
        return Evaluation(self.name, items, others, self.benchmark.measures(items, others), self.trained_on)

    def ask_bare_decoder(self, model: VisionLanguageModel, spread: Spread = map) -> list[Item]:
        """What a model that is not trained yet says without pictures: only its language decoder has a part in that.

        Nothing is asked of a benchmark that makes no use of it (see ``Benchmark.bare_decoder``).
        """
        if not (self.benchmark.bare_decoder and self.has_pictures):
            return []
        return self._ask(model, self._changed(without_images), spread)

    def answered(self, items: Sequence[Item]) -> list[Answered]:
        """The samples that were asked, each with its item."""
        pairs = zip(self.samples, items, strict=True)
        return [(sample, item) for sample, item in pairs if isinstance(sample, Sample) and not item.skipped]

    @property
    def has_pictures(self) -> bool:
        return any(sample.images for sample in self.samples if isinstance(sample, Sample))

    def _changed(self, change: Change) -> list[Sample | Item]:
        changed = iter(change([sample for sample in self.samples if isinstance(sample, Sample)]))
        return [next(changed) if isinstance(sample, Sample) else sample for sample in self.samples]

    def _ask(self, model: VisionLanguageModel, samples: Sequence[Sample | Item], spread: Spread) -> list[Item]:
        """Whoever asks a batch, it is the same one: rounding, and with it an answer, may depend on its company."""
        batches = [samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]
        return [item for items in spread(partial(self._ask_batch, model), batches) for item in items]

    def _ask_batch(self, model: VisionLanguageModel, samples: Batch) -> list[Item]:
        """Items in the order of ``samples``; one whose picture cannot be read is skipped, and wrong."""
        items: dict[int, Item] = {}
        examples = {}
        for i, sample in enumerate(samples):
            if isinstance(sample, Item):
                items[i] = sample
                continue
            try:
                prompt = Prompt(self.benchmark.prompt(sample), sample.images)
                example = prompt.example(model.text, model.vision_encoder.image)
                if num_tokens(model, example) + self.benchmark.max_new_tokens > model.language_decoder.max_positions:
                    raise SkipSample("too long")
                examples[i] = example
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
        words = benchmark.prompt(sample), prediction, benchmark.answer(sample)
        return Item(sample.id, *words, score, sample.category, sample.subcategory, skipped)

    def _read(self, index: int) -> Sample | Item:
        """A sample, or, if it is broken, the item that says so."""
        try:
            return self.benchmark[index]
        except SkipSample as skip:
            if skip.sample:
                return self._item(skip.sample, "", skip.reason)
            return Item(self.benchmark.id(index), "", "", "", 0.0, skipped=skip.reason)


def numbered(names: Sequence[str]) -> list[str]:
    """Benchmarks' names as a run reports them: the second ``shapes`` of an experiment is ``shapes-2``."""
    numbers = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return [name if number == 1 else f"{name}-{number}" for name, number in zip(names, numbers, strict=True)]


def _controls(seed: int) -> dict[str, Change]:
    return {"shuffled": lambda samples: shuffled(samples, seed), "no_image": without_images}


def _by(items: Sequence[Item], key: Callable[[Item], str | None]) -> dict[str, list[float]]:
    """The scores of the items of each key, in the keys' order."""
    groups: dict[str, list[float]] = defaultdict(list)
    for item in items:
        if name := key(item):
            groups[name].append(item.score)
    return dict(sorted(groups.items()))


def _same_questions(recorded: Sequence[Item], items: Sequence[Item]) -> list[Item]:
    """Of the recorded items those of the same questions; none unless all of them are there."""

    def question(item: Item) -> tuple[str, str, str]:
        return item.id, item.question.replace(IMAGE_MARK, ""), item.answer

    known = {question(item): item for item in recorded}
    found = [known[question(item)] for item in items if question(item) in known]
    return found if len(found) == len(items) else []
