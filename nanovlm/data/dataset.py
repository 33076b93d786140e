"""The contracts of data: what the core asks of a dataset, and of one whose questions are asked and scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from nanovlm.components import ComponentConfig

if TYPE_CHECKING:
    from nanovlm.data.images import ImageSource
    from nanovlm.data.ranks import Ranks
    from nanovlm.evaluation.evaluator import Item


@dataclass(frozen=True)
class Turn:
    """One exchange. ``<image>`` in ``user`` marks a picture's place; unmarked pictures come before the first turn."""

    user: str
    assistant: str


@dataclass(frozen=True)
class Sample:
    """A conversation about pictures, as a dataset gives it."""

    images: list[ImageSource]
    turns: list[Turn]
    id: str
    choices: list[str] | None = None
    """Of a multiple-choice question: kept beside it for a benchmark's own use; the core does not read it."""
    category: str | None = None
    """A benchmark's table has a line for each, with its own accuracy."""
    subcategory: str | None = None
    """A finer division: its lines stand below its category's."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many turns of it the dataset left out, by reason: counted and reported."""


class Subset(NamedTuple):
    """Neighbouring samples of a dataset, and how often an epoch passes over them."""

    name: str
    size: int
    weight: float = 1.0


class Row(NamedTuple):
    """A sample of a stream before anything is made of it: its id, what it is made of (picklable), and its subset."""

    id: str
    content: Any
    subset: str = ""


Split = Literal["train", "test"]


class Dataset:
    """``(config, split)``: samples by index, always the same ones. The core takes its validation share of ``train``.

    Samples that can only be had one after another are a stream: ``streaming`` is true, ``stream`` and ``sample`` take
    the place of all other methods, and there is no length.
    """

    Config: ClassVar[type[ComponentConfig]]
    streaming: bool = False

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        """May raise ``SkipSample(reason)`` for a sample that cannot be used."""
        raise NotImplementedError

    def id(self, index: int) -> str:
        """``self[index].id``, without reading the sample: it decides what belongs to the validation share."""
        raise NotImplementedError

    def subsets(self) -> Sequence[Subset]:
        """All indices in order, by subset: each has a weight, and what is skipped is counted for each."""
        return [Subset("", len(self))]

    def stream(self) -> Iterator[Row]:
        """One pass over all rows, always in the same order; read in the trainer's process."""
        raise NotImplementedError

    def stream_from(self, state: Any, ranks: Ranks) -> Iterator[tuple[Row, Any]]:
        """One rank's rows of a pass, each with a state (JSON) that, given back, goes on after it; None is the start.

        By default a state counts rows: every rank reads all of them, and those before it, of which it makes nothing.
        """
        for number, row in enumerate(self.stream()):
            if number >= (state or 0) and ranks.takes(number):
                yield row, number + 1

    def sample(self, row: Row) -> Sample:
        """What a row holds, made in a worker. May raise ``SkipSample(reason)``."""
        raise NotImplementedError


class Benchmark(Dataset):
    """A dataset whose ``test`` split can also be asked and scored."""

    max_new_tokens: int = 32
    bare_decoder: bool = False
    """Whether a run also asks its language decoder alone, before it is trained, the questions without pictures."""

    def prompt(self, sample: Sample) -> str:
        """What the model is asked: by default the user's words of the first turn."""
        return sample.turns[0].user

    def answer(self, sample: Sample) -> str:
        """The right answer, as it is shown beside a prediction."""
        return sample.turns[0].assistant

    def score(self, prediction: str, sample: Sample) -> float:
        """0 to 1: how right it is. By default 1 if it equals the answer, letter case and full stop aside."""
        return float(_plain(prediction) == _plain(self.answer(sample)))

    def measures(self, items: Sequence[Item], controls: Mapping[str, float]) -> dict[str, Any]:
        """Figures of the benchmark's own, by name, that stand beside the accuracy; an ``x_ci95`` is ``x_accuracy``'s.

        controls: the accuracies of the same questions under other conditions: with the pictures ``shuffled``, with
        ``no_image``, and the ``bare_decoder``'s. Only those that were asked: on the way of a run none is.
        """
        return {}


def _plain(text: str) -> str:
    return text.strip().rstrip(".").casefold()
