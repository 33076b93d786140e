"""Datasets that cannot be opened anywhere, or whose samples are broken: a sound one with one small change."""

import socket
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy
from PIL import Image

from nanovlm import ConfigError, Sample, SkipSample, Turn
from nanovlm.testing.companions import Data


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


class SkipsAll(Changed):
    def change(self, sample):
        raise SkipSample("no picture")


class TrainsOnly(Data):
    def __init__(self, config, split):
        if split == "test":
            raise ConfigError("there is no test split")
        super().__init__(config, split)


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
        (KIND, SkipsAll, "by Config.tiny(): all that it has are skipped (no picture); let it have a few, for tests"),
        (KIND, TrainsOnly, "refuses its test split by Config.tiny() (there is no test split): that is to open both"),
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
}  # fmt: skip
