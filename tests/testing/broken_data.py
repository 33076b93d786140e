"""Datasets and benchmarks that break one promise each: a sound one with one small change (see broken_models.py)."""

import random
import socket
import threading
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy
import torch
from PIL import Image

from nanovlm import Sample, SkipSample, Turn
from nanovlm.data.dataset import Subset
from nanovlm.testing.companions import COLOURS, Data


class Changed(Data):
    """Every sample in another form."""

    def change(self, sample: Sample) -> Sample:
        return sample

    def __getitem__(self, index):
        return self.change(super().__getitem__(index))


# Where it looks, and what it leaves


class NeedsAFile(Data):
    def __init__(self, config, split):
        super().__init__(config, split)
        self.words = Path("words.txt").read_text()


class LooksForNews(Data):
    def __init__(self, config, split):
        super().__init__(config, split)
        with suppress(OSError):
            socket.create_connection(("example.org", 443))


class KeepsACache(Data):
    def __init__(self, config, split):
        super().__init__(config, split)
        Path("~/colours").expanduser().write_text("red")


class OpensLate(Changed):
    def change(self, sample):
        return replace(sample, images=[LateImage()])


class LateImage(Image.Image):
    @property
    def size(self):
        raise ZeroDivisionError


# Its samples


class NoDataset:
    Config = Data.Config

    def __init__(self, config, split):
        pass


class Empty(Data):
    def __len__(self):
        return 0


class Huge(Data):
    def __len__(self):
        return 10**6

    def id(self, index):
        return f"{super().id(index % 4)}/{index}"


class GivesMappings(Changed):
    def change(self, sample):
        return {"images": sample.images, "turns": sample.turns}


class Stumbles(Changed):
    def change(self, sample):
        return [][0]


class NumbersForIds(Changed):
    def id(self, index):
        return index


class PicturesInATuple(Changed):
    def change(self, sample):
        return replace(sample, images=tuple(sample.images))


class PicturesAsArrays(Changed):
    def change(self, sample):
        return replace(sample, images=[numpy.asarray(image) for image in sample.images])


class TurnsAsPairs(Changed):
    def change(self, sample):
        return replace(sample, turns=[(turn.user, turn.assistant) for turn in sample.turns])


class NumbersForChoices(Changed):
    def change(self, sample):
        return replace(sample, choices=[1, 2])


class NumberForCategory(Changed):
    def change(self, sample):
        return replace(sample, category=1)


class CountsNothing(Changed):
    def change(self, sample):
        return replace(sample, left_out={"too long": 0})


class ListsWhatItLeavesOut(Changed):
    def change(self, sample):
        return replace(sample, left_out=["too long"])


class NothingSaid(Changed):
    def change(self, sample):
        return replace(sample, turns=[])


class BlankAnswer(Changed):
    def change(self, sample):
        return replace(sample, turns=[*sample.turns, Turn("And now?", "\n")])


class BrokenPictures(Changed):
    def change(self, sample):
        return replace(sample, images=[b"no picture"])


class OneMarkTooMany(Changed):
    def change(self, sample):
        return replace(sample, turns=[Turn("<image><image> What colour?", sample.turns[0].assistant)])


# Ids, splits, repetition


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
    "opens anywhere": [
        (KIND, NeedsAFile, "fails in an empty folder, without network: FileNotFoundError"),
        (KIND, LooksForNews, "tries to reach example.org for Config.tiny(): tests and checks have no network"),
        (KIND, KeepsACache, "writes ~/colours when it is read"),
        (KIND, OpensLate, "fails to open a picture of train sample 0: ZeroDivisionError"),
        (KIND, NoDataset, "is no Dataset: derive it from nanovlm.Dataset"),
    ],
    "samples are well formed": [
        (KIND, Empty, "has no sample in any split by Config.tiny(): let it have a few"),
        (KIND, Huge, "has more than 1000 samples in its train split by Config.tiny(): give it few"),
        (KIND, GivesMappings, "gives dict as train sample 0: give a nanovlm.Sample"),
        (KIND, Stumbles, 'fails to read train sample 0 (raise SkipSample("reason") where a sample cannot be used): I'),
        (KIND, NumbersForIds, "gives train sample 0 with id=0: an id is a text"),
        (KIND, PicturesInATuple, "gives train sample 0 with images of type tuple: they are a list"),
        (KIND, PicturesAsArrays, "with a picture of type ndarray: a picture is a path, bytes or a Pillow image"),
        (KIND, TurnsAsPairs, "with the turn ('What colour?', 'red'): a turn is Turn(user, assistant)"),
        (KIND, NumbersForChoices, "with choices=[1, 2]: choices are texts"),
        (KIND, NumberForCategory, "with category=1: it is a text or None"),
        (KIND, CountsNothing, "with left_out={'too long': 0}: it is a mapping from a reason to the number of turns"),
        (KIND, ListsWhatItLeavesOut, "with left_out=['too long']: it is a mapping"),
    ],
    "samples have answers": [
        (KIND, NothingSaid, "gives train sample 0 without a turn: there is nothing to learn from it; raise SkipSample"),
        (KIND, BlankAnswer, "gives train sample 0 with an empty answer in turn 1: leave the turn out and count it"),
    ],
    "pictures open and have places": [
        (KIND, BrokenPictures, "gives train sample 0 with a picture (number 0) that cannot be used: undecodable"),
        (KIND, OneMarkTooMany, "gives train sample 0 with 1 pictures and 2 marks (<image>) in the user's words"),
    ],
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
