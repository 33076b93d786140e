"""Datasets whose ids, splits, subsets or repetitions are broken: a sound one with one small change."""

import random
import threading
import uuid
from dataclasses import replace

import torch
from broken_data import Changed

from nanovlm import Sample, SkipSample, Turn
from nanovlm.data.dataset import Subset
from nanovlm.testing.companions import COLOURS, Data


class ReadsForTheId(Data):
    def id(self, index):
        return self[index].id if threading.active_count() else ""

    def __getitem__(self, index):
        colour = self.colours[index]
        return Sample([], [Turn("What colour?", colour)], f"companion/{colour}")


class SameIdTwice(Data):
    def id(self, index):
        return super().id(index // 2)


class OtherIdOnceRead(Changed):
    def change(self, sample):
        return replace(sample, id=sample.id.upper())


class SharedIds(Data):
    def id(self, index):
        return f"companion/{index}"


class SharedContent(Data):
    def __init__(self, config, split):
        super().__init__(config, split)
        self.split, self.colours = split, COLOURS["train"]

    def id(self, index):
        return f"{self.split}/{index}"


class DrawsEachTime(Changed):
    def change(self, sample):
        return replace(sample, turns=[Turn(f"What colour? ({uuid.uuid4()})", sample.turns[0].assistant)])


class CountsReadings(Changed):
    def __init__(self, config, split):
        super().__init__(config, split)
        self.read = 0

    def change(self, sample):
        self.read += 1
        return replace(sample, category=str(self.read))


class NewIdsEachTime(Data):
    def __init__(self, config, split):
        super().__init__(config, split)
        self.own = uuid.uuid4()

    def id(self, index):
        return f"{self.own}/{index}"


class Locked(Data):
    def __init__(self, config, split):
        super().__init__(config, split)
        self.lock = threading.Lock()


class ForgetsOnTheWay(Changed):
    words = "What colour?"

    def __getstate__(self):
        return self.__dict__ | {"words": "?"}

    def change(self, sample):
        return replace(sample, turns=[Turn(self.words, sample.turns[0].assistant)])


# What is left out


class SkipsInSilence(Changed):
    def change(self, sample):
        raise SkipSample("")


class SkipsEachByItself(Changed):
    def change(self, sample):
        raise SkipSample(f"{sample.id} cannot be read")


class SkipsAnother(Changed):
    def change(self, sample):
        raise SkipSample("undecodable picture", replace(sample, id="another"))


class MissesOne(Data):
    def subsets(self):
        return [Subset("all", len(self) - 1)]


class CalledTheSame(Data):
    def subsets(self):
        return [Subset("half", len(self) // 2), Subset("half", len(self) - len(self) // 2)]


class Weightless(Data):
    def subsets(self):
        return [Subset("all", len(self), 0.0)]


class DrawsAtOpening(Data):
    def __init__(self, config, split):
        super().__init__(config, split)
        torch.rand(1)


class SeedsToRead(Changed):
    def change(self, sample):
        random.seed(0)
        return sample


KIND = "dataset"
BROKEN: dict[str, list[tuple[str, type | str, str]]] = {
    "ids are known unread": [
        (KIND, ReadsForTheId, "reads a sample to know its id: an id decides what is held out"),
        (KIND, SameIdTwice, "gives the id 'companion/red' to 2 samples of its train split"),
        (KIND, OtherIdOnceRead, "calls train sample 0 'companion/red' before it is read, and 'COMPANION/RED' after"),
    ],
    "splits share nothing": [
        (KIND, SharedIds, "ids in train and in test, such as 'companion/0'"),
        (KIND, SharedContent, "has the same pictures and words in train sample 0 and in test sample 0"),
    ],
    "samples are always the same": [
        (KIND, DrawsEachTime, "gives train sample 0 with another content when it is read again: draw from a generator"),
        (KIND, CountsReadings, "gives train sample 0 with another content when it is read again"),
        (KIND, NewIdsEachTime, "gives other ids when its train split is opened again"),
    ],
    "travels to a worker": [
        (KIND, Locked, "fails to be pickled for a worker process (open files and locks do not travel): TypeError"),
        (KIND, ForgetsOnTheWay, "gives another train sample 0 once it was pickled and unpickled"),
    ],
    "skips for a reason": [
        (KIND, SkipsInSilence, "skips train sample 0 without a reason: ''"),
        (KIND, SkipsEachByItself, "for 'companion/red cannot be read': leave its id out, reasons are counted"),
        (KIND, SkipsAnother, "skips train sample 0 by SkipSample with a sample of the id 'another'"),
    ],
    "subsets cover everything": [
        (KIND, MissesOne, "has 4 samples in its train split, and 3 in its subsets"),
        (KIND, CalledTheSame, "has 2 subsets called 'half'"),
        (KIND, Weightless, "gives subset 'all' the weight 0.0: leave it out, or above 0"),
    ],
    "randomness is left alone": [
        (KIND, DrawsAtOpening, "changes the global random state of torch when it is opened"),
        (KIND, SeedsToRead, "changes the global random state of Python when it is read: draw from a generator of its"),
    ],
}  # fmt: skip
