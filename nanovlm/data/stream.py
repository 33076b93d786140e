"""Steps of a dataset that can only be read from its beginning: one reader, and workers that make samples of its rows.

The reader is a thread of the trainer's process and hands rows out as they were read, already in their order: that is a
pure function of (seed, pass, window), so the number of workers changes nothing. When the stream ends, it begins again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import count, islice
from queue import Full, Queue
from threading import Event, Thread
from typing import TypeVar

import torch

from nanovlm.blueprint import located
from nanovlm.components import Dataset, Row
from nanovlm.data.loader import HeldOut, Packing, Preparation, Step, Steps
from nanovlm.data.mixture import Member, is_held_out, origin
from nanovlm.errors import DataError
from nanovlm.experiment import Data
from nanovlm.seeding import generator

WINDOW = 1024  # neighbouring rows that are shuffled among each other; all of them are in memory
STEPS_AHEAD = 2  # that are read, beside those that the workers have
PATIENCE = 10  # seconds in which a reader should be done with the row in hand; a download may hang for longer

T = TypeVar("T")


class Stream:
    """The training rows of one streaming dataset: what is held out, and the order of the rest."""

    def __init__(self, dataset: Dataset, data: Data, seed: int, position: int = 0) -> None:
        self.dataset, self.validation, self.data_seed, self.seed = dataset, data.validation, data.seed, seed
        self.position = position  # in data.train

    def rows(self) -> Iterator[Row]:
        """The training rows, pass after pass without end; raises DataError if there is none."""
        for epoch in count():
            window = None
            for window in self.windows(epoch):
                yield from window
            if window is None:
                raise DataError(
                    f"data.train.{self.position}: all of the stream is held out for validation; "
                    "lower data.validation.share"
                )

    def windows(self, epoch: int) -> Iterator[list[Row]]:
        """One pass over the training rows, each window in an order of its own."""
        for number, rows in enumerate(_batched(self._read(held_out=False), WINDOW)):
            order = torch.randperm(len(rows), generator=generator(self.seed, epoch, "window", number))
            yield [rows[i] for i in order.tolist()]

    def held_out(self) -> list[Row]:
        """The first held-out rows, as many as data.validation.limit asks for; each once, whatever its weight."""
        rows: dict[str, Row] = {}
        for row in self._read(held_out=True) if self.validation.share else ():
            rows.setdefault(row.id, row)
            if len(rows) == self.validation.limit:
                break
        return list(rows.values())

    def member(self, row: Row) -> Member:
        return Member(origin(self.position, row.subset), partial(self.dataset.sample, row))

    def fingerprint(self) -> Iterable[bytes]:
        """What decides which row comes when: the seeds, the share, and the ids of the first window in their order."""
        yield f"{self.seed}:{self.data_seed}:{self.validation.share}:{WINDOW}".encode()
        yield "".join(row.id for row in next(self.windows(0), [])).encode()

    def _read(self, held_out: bool) -> Iterator[Row]:
        """One pass over the rows that are held out, or over those that are not."""
        with located(f"data.train.{self.position}"):
            for row in self.dataset.stream():
                if is_held_out(row.id, self.validation.share, self.data_seed) == held_out:
                    yield row


class StreamedSteps(Steps):
    """The steps of a stream. A task is the rows of one."""

    def __init__(
        self, stream: Stream, prepare: Preparation, packing: Packing, samples_per_step: int, samples: int
    ) -> None:
        self.stream, self.prepare, self.packing = stream, prepare, packing
        self.samples_per_step, self.samples = samples_per_step, samples

    def tasks(self) -> Iterable[Sequence[Row]]:
        return ahead(_batched(islice(self.stream.rows(), self.samples), self.samples_per_step), STEPS_AHEAD)

    def __getitem__(self, rows: Sequence[Row]) -> Step:  # type: ignore[override]  # not by number
        return self.packing.step(map(self.stream.member, rows), self.prepare)


class StreamedHeldOut(HeldOut):
    """A stream's validation samples: read once, from its beginning, when they are first needed; then kept."""

    def __init__(self, stream: Stream, prepare: Preparation, packing: Packing, samples_per_step: int) -> None:
        self.stream, self.prepare, self.packing, self.size = stream, prepare, packing, samples_per_step

    @cached_property
    def rows(self) -> list[Row]:
        return self.stream.held_out()

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def tasks(self) -> Iterable[Sequence[Row]]:
        return _batched(self.rows, self.size)

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
