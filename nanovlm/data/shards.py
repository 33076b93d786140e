"""Rows of a table in shards (files): numbered, divided by rank, and read from any of them on.

Ranks take whole shards, as many each; of those that are left over each rank reads all, and takes every n-th row. So
no row is lost or taken twice, and no rank has many more than another, whatever the number of shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from nanovlm.data.ranks import ALONE, Ranks

BATCH = 32  # rows that are taken from the library at once: one by one takes it twice the time

T = TypeVar("T")


class Shards(Protocol):
    """Pieces of a table that can be read one by one.

    sized: whether ``size`` knows how many rows a shard has, without reading them. If not, rows can only be numbered by
        whoever reads them all, and no shard is one rank's alone.
    """

    sized: bool

    def __len__(self) -> int: ...

    def size(self, shard: int) -> int: ...

    def batches(self, shard: int) -> Iterator[Any]:
        """The shard's rows in order, in Arrow tables."""
        ...


class TableShards:
    """The shards of a Hugging Face table that is streamed, with Arrow as its format."""

    def __init__(self, table: Any, files: Sequence[str]) -> None:
        self.table, self.files = table, files  # one for each shard
        self.sized = len(files) == len(self) and all(file.endswith(".parquet") for file in files)

    def __len__(self) -> int:
        return int(self.table.num_shards)

    def size(self, shard: int) -> int:
        import fsspec  # type: ignore[import-untyped]
        import pyarrow.parquet

        with fsspec.open(self.files[shard]) as file:
            return int(pyarrow.parquet.read_metadata(file).num_rows)

    def batches(self, shard: int) -> Iterator[Any]:
        return iter(self.table.shard(num_shards=len(self), index=shard).iter(BATCH))


class Place(NamedTuple):
    """Before which row of a table: the shard, the row within it, and its number among all rows."""

    shard: int = 0
    row: int = 0
    number: int = 0


BEGINNING = Place()


def read_shards(
    shards: Shards, ranks: Ranks = ALONE, place: Place = BEGINNING, stop: int = 0
) -> Iterator[tuple[int, Any, Place]]:
    """One rank's rows from a place on: each one's number, an Arrow table of it alone, and the place after it.

    Shards before the place are not opened, rows before it are not decoded. ``stop``: leave out the rows from this
    number on; 0 reads all.
    """
    # The first few rows may all be in one shard, so that whole shards would leave the other ranks without any.
    whole = len(shards) - len(shards) % ranks.world if shards.sized and not stop else 0
    mine = [shard for shard in range(len(shards)) if shard >= whole or ranks.takes(shard)]
    for shard in range(place.shard, mine[-1] + 1 if mine else 0):
        if shard < whole and not ranks.takes(shard):
            place = Place(shard + 1, 0, place.number + shards.size(shard))
            continue
        first = place.number - place.row  # the number of the shard's first row
        for row, table, last in _rows(shards.batches(shard), place.row):
            number = first + row
            if stop and number >= stop:
                return
            place = Place(shard + 1, 0, number + 1) if last else Place(shard, row + 1, number + 1)
            if shard < whole or ranks.takes(number):
                yield number, table, place
        if place.shard == shard:  # nothing was left of it
            place = Place(shard + 1, 0, place.number)


def _rows(batches: Iterable[Any], skip: int) -> Iterator[tuple[int, Any, bool]]:
    """A shard's rows without the first ones: each one's number within it, the row, and whether it is the last one."""
    start = 0
    for batch, last in _last_marked(batches):
        for row in range(max(0, skip - start), len(batch)):
            yield start + row, batch.slice(row, 1), last and row + 1 == len(batch)
        start += len(batch)


def _last_marked(things: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Each thing, and whether none comes after it: a shard that was read to its end need not be opened to see that."""
    things = iter(things)
    for thing in things:
        for following in things:
            yield thing, False
            thing = following
        yield thing, True
