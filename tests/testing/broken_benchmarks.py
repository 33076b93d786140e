"""Benchmarks that break one promise each: the sound companion with one small change."""

from itertools import count

import torch

from nanovlm.data.dataset import Row
from nanovlm.testing.companions import COLOURS, Data


class StreamedQuestions(Data):
    streaming = True

    def stream(self):
        return (Row(self.id(index), index) for index in range(len(self)))

    def sample(self, row):
        return self[row.content]


class Questionless(Data):
    def __len__(self):
        return len(self.colours) if self.colours == COLOURS["train"] else 0


class NoRoom(Data):
    max_new_tokens = 0


class AsksNothing(Data):
    def prompt(self, sample):
        return " "


class NoAnswerToShow(Data):
    def answer(self, sample):
        return None


class MarksInThePrompt(Data):
    def prompt(self, sample):
        return "<image> or <image>?"


class HardToPlease(Data):
    def score(self, prediction, sample):
        return 0.5


class EasyToPlease(Data):
    def score(self, prediction, sample):
        return float(bool(prediction))


class Generous(Data):
    def score(self, prediction, sample):
        return 1.0 if prediction == self.answer(sample) else 0.9 * bool(prediction)


class Percent(Data):
    def score(self, prediction, sample):
        return super().score(prediction, sample) if len(prediction) < 10 else 100.0


class Moody(Data):
    moods = count()

    def score(self, prediction, sample):
        return super().score(prediction, sample) or (next(self.moods) % 2 if prediction.startswith("Not") else 0)


class ReadsNumbers(Data):
    def score(self, prediction, sample):
        return float(prediction) if prediction == "(((" else super().score(prediction, sample)


class HidesTheAccuracy(Data):
    def measures(self, items, controls):
        return {"accuracy": 1.0}


class MeasuresTensors(Data):
    def measures(self, items, controls):
        return {"share": torch.tensor(0.5)}


class NeedsControls(Data):
    def measures(self, items, controls):
        return {"gain": 0.5 - controls["no_image"]}


class MeasuresNothing(Data):
    def measures(self, items, controls):
        return {"gain": float("nan")}


class IntervalOfNothing(Data):
    def measures(self, items, controls):
        return {"loose_ci95": [0.0, 1.0]}


KIND = "dataset"
BROKEN: dict[str, list[tuple[str, type | str, str]]] = {
    "questions can be asked": [
        (KIND, StreamedQuestions, "streams its test split: a benchmark has a number of questions"),
        (KIND, Questionless, "is a Benchmark without a question in its test split by Config.tiny()"),
        (KIND, NoRoom, "has max_new_tokens=0: an answer takes at least one token"),
        (KIND, AsksNothing, "has ' ' as the prompt of sample 'companion/yellow': it is a text"),
        (KIND, NoAnswerToShow, "has None as the answer of sample 'companion/yellow': it is a text"),
        (KIND, MarksInThePrompt, "asks about 1 pictures with 2 marks (<image>) in the prompt of sample 'companion/yel"),
    ],
    "knows right from wrong": [
        (KIND, HardToPlease, "scores 'yellow' with 0.5, where the answer of sample 'companion/yellow' is 'yellow' an"),
        (KIND, Generous, "scores 'xyzzy' with 0.9, where the answer of sample 'companion/yellow' is 'yellow' and 0, o"),
        (KIND, EasyToPlease, "scores 'xyzzy' with 1.0, where the answer of sample 'companion/yellow' is 'yellow' a"),
    ],
    "scores stay in bounds": [
        (KIND, Percent, "scores 'no such answer' with 100.0: a score is a number from 0 to 1"),
        (KIND, Moody, "scores 'Not yellow.' with 0, and then with 1"),
        (KIND, ReadsNumbers, "fails to score '(((': ValueError"),
    ],
    "measures are figures": [
        (KIND, HidesTheAccuracy, "calls a measure 'accuracy', which all benchmarks' results have: give it another"),
        (KIND, MeasuresTensors, "fails to measure 5 answers, with the controls not asked: TypeError"),
        (KIND, NeedsControls, "fails to measure 5 answers, with the controls not asked: KeyError"),
        (KIND, MeasuresNothing, "has measures that are no finite numbers: "),
        (KIND, IntervalOfNothing, "measures loose_ci95, but no loose_accuracy that it belongs to"),
    ],
}  # fmt: skip
