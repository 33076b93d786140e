"""Streams that break one promise each: a sound one with one small change."""

import threading
from dataclasses import replace
from itertools import count

from PIL import Image

from nanovlm import Dataset, Sample, Turn
from nanovlm.data.dataset import Row
from nanovlm.testing.companions import COLOURS, Data


class Stream(Dataset):
    """A sound one: colours, one after another."""

    Config = Data.Config
    streaming = True

    def __init__(self, config, split):
        self.colours = COLOURS[split]

    def stream(self):
        for colour in self.colours:
            yield Row(f"stream/{colour}", [colour])

    def sample(self, row):
        return Sample([Image.new("RGB", (16, 16), row.content[0])], [Turn("What colour?", row.content[0])], row.id)


class ByOption(Data):
    """A sound one, that is a stream by its option."""

    class Config(Data.Config):
        streaming: bool = False
        """Read one after another."""

    def __init__(self, config, split):
        super().__init__(config, split)
        self.streaming = config.streaming

    def stream(self):
        return (Row(self.id(index), index) for index in range(len(self)))

    def sample(self, row):
        return self[row.content]


class StopsInTheMiddle(ByOption):
    def stream_from(self, state, ranks):
        return (pair for number, pair in enumerate(super().stream_from(state, ranks)) if number < 2)


class OnePassOnly(Stream):
    def __init__(self, config, split):
        super().__init__(config, split)
        self.rest = super().stream()

    def stream(self):
        return self.rest

    def __reduce__(self):
        return type(self), (None, "train")


class OneReader(Stream):
    def stream(self):
        self.place = 0
        while self.place < len(self.colours):
            colour = self.colours[self.place]
            self.place += 1
            yield Row(f"stream/{colour}", [colour])


class EndlessStream(Stream):
    def stream(self):
        return (Row(f"stream/{number}", ["red"]) for number in count())


class PairsForRows(Stream):
    def stream(self):
        return (Pair(row) for row in super().stream())


class Pair(tuple):
    id = property(lambda self: self[0])
    content = property(lambda self: self[1])
    subset = ""


class StuckRows(Stream):
    def stream(self):
        return (row._replace(content=[*row.content, threading.Lock()]) for row in super().stream())


class Fading(str):
    def __reduce__(self):
        return str, ("black",)


class FadingRows(Stream):
    def stream(self):
        return (row._replace(content=[Fading(row.content[0])]) for row in super().stream())


class RenamesRows(Stream):
    def sample(self, row):
        return replace(super().sample(row), id=row.id.upper())


class StatesAsSets(Stream):
    def stream_from(self, state, ranks):
        return ((row, {after}) for row, after in super().stream_from(next(iter(state or [0])), ranks))


class OneStateForAll(Stream):
    def stream_from(self, state, ranks):
        progress = {"read": (state or {}).get("read", 0)}
        for row, after in super().stream_from(progress["read"], ranks):
            progress["read"] = after
            yield row, progress


class OneRowLate(Stream):
    def stream_from(self, state, ranks):
        return super().stream_from(state and state + 1, ranks)


class OtherRowsForTraining(Stream):
    def stream_from(self, state, ranks):
        return super().stream_from(state or 1, ranks)


class AllForEveryRank(Stream):
    def stream_from(self, state, ranks):
        return ((row, n + 1) for n, row in enumerate(self.stream()) if n >= (state or 0))


class FirstRankOnly(Stream):
    def stream_from(self, state, ranks):
        return (pair for pair in super().stream_from(state, ranks) if ranks.rank == 0)


KIND = "dataset"
BROKEN: dict[str, list[tuple[str, type | str, str]]] = {
    "rows come again": [
        (KIND, OnePassOnly, "gives other rows in the second pass of its stream: begin each `stream()` anew"),
        (KIND, OneReader, "mixes two passes that are read in turns: keep a pass's place in its generator"),
        (KIND, EndlessStream, "has more than 1000 rows in a pass by Config.tiny(), or no end"),
    ],
    "rows become samples": [
        (KIND, PairsForRows, "gives Pair as row 0 of its stream: give a nanovlm.data.dataset.Row"),
        (KIND, StuckRows, "fails to pickle row 0 for a worker process: TypeError"),
        (KIND, FadingRows, "makes another sample of row 0 once it was pickled and unpickled"),
        (KIND, RenamesRows, "calls row 0 'stream/red', and the sample of it 'STREAM/RED'"),
    ],
    "states are json": [
        (KIND, StatesAsSets, "fails to write a state of its stream as JSON (numbers, texts, lists and mappings of"),
        (KIND, OneStateForAll, "changes a state of its stream after it was given: give a copy with each row"),
    ],
    "goes on after a state": [
        (KIND, OneRowLate, "goes on with other rows than those after row 1 when it is given that row's state (rank"),
        (KIND, OtherRowsForTraining, "gives other rows by stream_from(None, ...) than by stream(): both are one pass"),
        (KIND, StopsInTheMiddle, "gives other rows by stream_from(None, ...) than by stream(): both are one pass"),
    ],
    "ranks share the rows": [
        (KIND, AllForEveryRank, "gives of 4 rows 4 rows more than once of 2 ranks: ask ranks.takes(number) for each"),
        (KIND, FirstRankOnly, "gives of 4 rows 2 rows to none of 2 ranks"),
    ],
}  # fmt: skip
