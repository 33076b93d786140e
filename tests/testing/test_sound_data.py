"""What a dataset may do, and no check holds against it."""

from difflib import SequenceMatcher

import pytest
from broken_streams import ByOption, Stream

from nanovlm import Dataset, Sample, SkipSample, Turn
from nanovlm.data.dataset import Row, Subset
from nanovlm.plugins import Registries
from nanovlm.testing.checks import bound_to, find
from nanovlm.testing.companions import Data


class Training(Dataset):
    """Text alone, in two subsets, the test split empty; one sample cannot be used, of another a turn was left out."""

    Config = Data.Config

    def __init__(self, config, split):
        self.size = 6 if split == "train" else 0

    def __len__(self):
        return self.size

    def id(self, index):
        return f"number/{index}"

    def __getitem__(self, index):
        if index == 2:
            raise SkipSample("unlucky", Sample([], [], self.id(index)))
        left_out = {"too hard": 1} if index == 3 else {}
        return Sample([], [Turn("Which?", str(index)), Turn("And?", "No.")], self.id(index), left_out=left_out)

    def subsets(self):
        return [Subset("few", 2, 3.0), Subset("many", 4)] if self.size else []


class QuestionsOnly(Data):
    """Nothing to train on; half a point for a part of the answer; pictures with marks."""

    def __init__(self, config, split):
        super().__init__(config, split)
        self.colours = self.colours if split == "test" else ()

    def prompt(self, sample):
        return f"<image> {sample.turns[0].user}"

    def score(self, prediction, sample):
        answer = self.answer(sample)
        return 1.0 if prediction == answer else 0.5 * (answer in prediction)

    def measures(self, items, controls):
        loose = sum(item.answer in item.prediction for item in items) / len(items)
        return {"loose_accuracy": loose, "loose_ci95": [0.0, 1.0], "gains": {name: 0.5 for name in controls}}


class CountsLetters(Data):
    """Of wrong words too, a few are right."""

    def score(self, prediction, sample):
        return SequenceMatcher(None, prediction, self.answer(sample)).ratio()

    def answer(self, sample):
        return f"lazy {super().answer(sample)}"


class ManyPictures(Data):
    """A film, and a long story about it."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        story = Turn("<image>" * 20 + "What happens?", f"It is {self.colours[index]}. " * 100)
        return Sample(sample.images * 20, [story], sample.id)


class InParts(Stream):
    """States of its own, and rows whose order is not the ranks'."""

    def stream_from(self, state, ranks):
        read = dict(state or {})
        for number, row in enumerate(super().stream()):
            part = ("odd", "even")[number % 2]
            if number // 2 >= read.get(part, 0) and ranks.takes(number + 1):
                read[part] = number // 2 + 1
                yield row, dict(read)


class InSubsets(Stream):
    def stream(self):
        return (Row(row.id, row.content, "light" if row.id.endswith("white") else "dark") for row in super().stream())


@pytest.mark.parametrize(
    "cls", [Training, QuestionsOnly, CountsLetters, ManyPictures, Stream, ByOption, InParts, InSubsets]
)
def test_all_of_it_passes(cls):
    checks = bound_to(find(cls, "dataset", Registries()))
    learns = {"learns under the trainer"} if cls is QuestionsOnly else set()  # there is nothing to train on
    assert {str(bound): bound.outcome().problem for bound in checks if str(bound) not in learns} == {
        str(bound): "" for bound in checks if str(bound) not in learns
    }


def test_a_check_says_why_it_was_not_made():
    reasons = {str(bound): bound.outcome().skipped for bound in bound_to(find(Data, "dataset", Registries()))}
    assert reasons["rows come again"] == "it is no stream"
    assert reasons["skips for a reason"] == "by Config.tiny() it skips no sample"
    reasons = {str(bound): bound.outcome().skipped for bound in bound_to(find(Stream, "dataset", Registries()))}
    assert reasons["subsets cover everything"] == "it is a stream, whose rows name their subsets"
    assert reasons["knows right from wrong"] == "it is for training only, no Benchmark"
    assert not reasons["rows come again"]
