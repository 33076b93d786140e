"""Steps of a dataset that can only be read from its beginning: one reader, and workers that make samples of its rows.

The reader is a thread of the trainer's process, one on each rank, and hands rows out as they were read, already in
their order: that is a pure function of (seed, pass, window), so the number of workers changes nothing, and a run goes
on in the window where it was. When a rank's part of the stream ends, it begins again, whatever the other ranks do.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from itertools import count, islice
from queue import Full, Queue
from threading import Event, Thread
from typing import Any, NamedTuple, Self, TypeVar

import torch

from nanovlm.blueprint import located
from nanovlm.data.content import content, spread
from nanovlm.data.dataset import Dataset, Row
from nanovlm.data.loader import HeldOut, Packing, Preparation, Step, Steps
from nanovlm.data.mixture import Member, is_held_out, origin
from nanovlm.data.ranks import ALONE, Ranks
from nanovlm.errors import DataError
from nanovlm.experiment import Data
from nanovlm.seeding import generator

WINDOW = 1024  # neighbouring rows that are shuffled among each other; all of them are in memory
STEPS_AHEAD = 2  # that are read, beside those that the workers have
PATIENCE = 10  # seconds in which a reader should be done with the row in hand; a download may hang for longer

T = TypeVar("T")


class Position(NamedTuple):
    """Before which row of a stream a run is: so many rows of a window were taken, and it begins at ``state``.

    state: the dataset's own (see ``Dataset.stream_from``); None at the beginning of a pass
    world: how many ranks share the stream; it is divided anew for another number
    """

    epoch: int = 0
    window: int = 0
    taken: int = 0
    state: Any = None
    world: int = 1


BEGINNING = Position()


class Window(NamedTuple):
    """Rows in the order of a run, where they begin, and where the next ones do."""

    rows: list[Row]
    start: Position
    end: Position

    def after(self, taken: int) -> Position:
        return self.end if taken == len(self.rows) else self.start._replace(taken=taken)


class Task(NamedTuple):
    """One rank's rows of a step, and where the next step begins."""

    rows: list[Row]
    position: Position


class Stream:
    """The training rows of one streaming dataset: what is held out, and the order of the rest."""

    def __init__(self, dataset: Dataset, data: Data, seed: int, position: int = 0) -> None:
        self.dataset, self.validation, self.data_seed, self.seed = dataset, data.validation, data.seed, seed
        self.position = position  # in data.train

    def rows(self, ranks: Ranks = ALONE, start: Position = BEGINNING) -> Iterator[tuple[Row, Position]]:
        """One rank's training rows from a position on, pass after pass without end, and the position after each.

        Raises DataError if there is none.
        """
        start = start._replace(world=ranks.world)
        for epoch in count(start.epoch):
            if epoch > start.epoch:
                start = Position(epoch, world=ranks.world)
            window = None
            for window in self.windows(ranks, start):
                for n in range(start.taken if window.start.window == start.window else 0, len(window.rows)):
                    yield window.rows[n], window.after(n + 1)
            if window is None and not start.window:
                raise self._nothing_for(ranks)

    def windows(self, ranks: Ranks = ALONE, start: Position = BEGINNING) -> Iterator[Window]:
        """A pass's training rows from the window of a position on, each window in an order of its own."""
        begin = start._replace(taken=0)
        rows = self._read(ranks, start.state)
        while found := list(islice(rows, WINDOW)):
            end = begin._replace(window=begin.window + 1, state=found[-1][1])
            order = torch.randperm(len(found), generator=generator(self.seed, begin.epoch, "window", begin.window))
            yield Window([found[i][0] for i in order.tolist()], begin, end)
            begin = end

    def held_out(self) -> list[Row]:
        """The first held-out rows, as many as data.validation.limit asks for; each once, whatever its weight.

        The same ones on every rank: each reads the stream as if it was alone.
        """
        rows: dict[str, Row] = {}
        for row, _ in self._read(held_out=True) if self.validation.share else ():
            rows.setdefault(row.id, row)
            if len(rows) == self.validation.limit:
                break
        return list(rows.values())

    def member(self, row: Row) -> Member:
        return Member(origin(self.position, row.subset), partial(self.dataset.sample, row), partial(str, row.id))

    def fingerprint(self) -> Iterator[bytes]:
        """The rows, whatever the run's seed: what is held out, the ids of the first window, and the content of 256.

        The stream is not read to its end, so a change after the first window's rows is not seen.
        """
        yield f"{self.data_seed}:{self.validation.share}".encode()
        apart = copy(self)  # see Mixture.fingerprint
        apart.dataset = copy(self.dataset)
        rows = [row for row, _ in islice(apart._read(), WINDOW)]
        yield "\0".join(row.id for row in rows).encode()
        for n in spread(len(rows)):
            yield from content(apart.member(rows[n]))

    def fingerprint_of_order(self, ranks: Ranks = ALONE) -> bytes:
        """What decides which of the rows comes when; each rank shuffles its own."""
        return f"{self.seed}:{WINDOW}:{ranks.world}".encode()

    def _read(self, ranks: Ranks = ALONE, state: Any = None, held_out: bool = False) -> Iterator[tuple[Row, Any]]:
        """The rest of a pass over the rows that are held out, or over those that are not, with the state after each."""
        with located(f"data.train.{self.position}"):
            for row, after in self.dataset.stream_from(state, ranks):
                if is_held_out(row.id, self.validation.share, self.data_seed) == held_out:
                    yield row, after

    def _nothing_for(self, ranks: Ranks) -> DataError:
        where = f"data.train.{self.position}"
        if ranks.world == 1:
            return DataError(f"{where}: all of the stream is held out for validation; lower data.validation.share")
        return DataError(
            f"{where}: of the stream nothing is left for rank {ranks.rank} of {ranks.world}: it has too few rows, or "
            "all of this rank's are held out for validation; train on fewer ranks, or lower data.validation.share"
        )


class StreamedSteps(Steps):
    """The steps of a stream, each of the rows that come next."""

    start = BEGINNING  # of the first task's rows

    def __init__(
        self, stream: Stream, prepare: Preparation, packing: Packing, samples_per_step: int, samples: int,
        ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self.stream, self.prepare, self.packing = stream, prepare, packing
        self.samples_per_step, self.samples, self.ranks = samples_per_step, samples, ranks

    def resumed(self, step: int, position: Any = None) -> Self:
        """``position`` as JSON gives it back. Raises DataError if it is none of this stream's."""
        resumed = super().resumed(step)
        if step:
            resumed.start = self._checked(step, position)
        return resumed

    def tasks(self) -> Iterable[Task]:
        return ahead(self._tasks(), STEPS_AHEAD)

    def __getitem__(self, task: Task) -> Step:  # type: ignore[override]  # not by number
        step = self.packing.step(map(self.stream.member, task.rows), self.prepare)
        return replace(step, position=task.position._asdict())

    def _tasks(self) -> Iterator[Task]:
        position = self.start._replace(world=self.ranks.world)
        rows = self.stream.rows(self.ranks, position)
        for step in range(self.first, len(self)):
            mine = self.ranks.positions(step, self.samples_per_step, self.samples)
            taken = list(islice(rows, len(mine)))  # none where a step has fewer samples than there are ranks
            position = taken[-1][1] if taken else position
            yield Task([row for row, _ in taken], position)

    def _checked(self, step: int, position: Any) -> Position:
        where = f"data.train.{self.stream.position}"
        if position is None:
            raise DataError(
                f"{where}: the checkpoint of step {step} does not say how far this stream was read, so its run was not "
                "trained on a stream; begin a new run, or set streaming to what it was"
            )
        found = Position(**position)
        if found.world != self.ranks.world:
            raise DataError(
                f"{where}: this stream was read by {found.world} rank(s) up to step {step}, and is divided anew for "
                f"{self.ranks.world}, so what was seen would come again; resume on {found.world}, or begin a new run"
            )
        return found


class StreamedHeldOut(HeldOut):
    """A stream's validation samples: read once, from its beginning, when they are first needed; then kept."""

    def __init__(
        self, stream: Stream, prepare: Preparation, packing: Packing, samples_per_step: int, ranks: Ranks = ALONE
    ) -> None:
        self.stream, self.prepare, self.packing = stream, prepare, packing
        self.size, self.ranks = samples_per_step, ranks

    @cached_property
    def rows(self) -> list[Row]:
        return self.stream.held_out()

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def tasks(self) -> Iterable[Sequence[Row]]:
        return map(self.ranks.share, _batched(self.rows, self.size))

    def __getitem__(self, rows: Sequence[Row]) -> Step:  # type: ignore[override]
        return self.packing.step(map(self.stream.member, rows), self.prepare)


def ahead(things: Iterable[T], most: int) -> Iterator[T]:
    """The same things, taken by a thread up to ``most`` ahead: a download must not hold up the trainer.

    The thread ends with whoever asked, and what it reads from is closed: libraries that read in threads of their own
    may abort the whole process if they are still at it when the interpreter ends.
    """
    queue: Queue[tuple[T] | BaseException | None] = Queue(most)
    closed = Event()

    def put(item: tuple[T] | BaseException | None) -> bool:
        while not closed.is_set():
            try:
                queue.put(item, timeout=0.1)
            except Full:
                continue
            return True
        return False

    def take() -> None:
        try:
            if all(put((thing,)) for thing in things):
                put(None)
        except BaseException as error:  # it belongs to whoever asked for the things
            put(error)
        finally:
            if isinstance(things, Generator):
                things.close()

    reader = Thread(target=take, daemon=True)
    reader.start()
    try:
        while (item := queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        closed.set()
        reader.join(PATIENCE)


def _batched(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch
