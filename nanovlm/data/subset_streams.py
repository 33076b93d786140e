"""Subsets as a stream that goes on where it was, divided by rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from operator import itemgetter
from typing import Any, NamedTuple

from nanovlm.data.dataset import Row
from nanovlm.data.huggingface import StreamedRows
from nanovlm.data.ranks import ALONE, Ranks
from nanovlm.data.subsets import Content, Subsets
from nanovlm.errors import DataError
from nanovlm.seeding import derived_seed


class Progress(NamedTuple):
    """How far a subset was read: rows given, passes that are over, and the place in the present one."""

    given: int = 0
    passes: int = 0
    place: Any = None


class StreamedSubsets(Subsets):
    """Subsets that are interleaved in a stream, evenly if the source tells their sizes.

    A part of a subset (a weight of 0.5) is the same rows in each pass, chosen by a hash of the id, where by index it is
    another half in each epoch. The state of the stream is each subset's ``Progress``, by its name.
    """

    def stream(self) -> Iterator[Row]:
        return (row for row, _ in self.stream_from(None, ALONE))

    def stream_from(self, state: Mapping[str, Any] | None, ranks: Ranks) -> Iterator[tuple[Row, dict[str, Any]]]:
        known = {name: rows.size if isinstance(rows, StreamedRows) else len(rows) for name, rows in self.rows.items()}
        sizes = {name: min(size, self.config.max_rows or size) for name, size in known.items() if size}
        evenly = len(sizes) == len(known)  # else they take turns
        progress = dict(state or {})

        def placed(name: str) -> Iterator[tuple[float, Row, Progress]]:
            """A subset's rows, each with its place in the pass: rising, and equally far apart."""
            total = self._weight(name) * (sizes[name] if evenly else 1)
            for row, after in self._passes_from(name, Progress(*progress.get(name, ())), ranks):
                yield (after.given - 0.5) / total, row, after

        for _, row, after in merge(*map(placed, self.rows), key=itemgetter(0)):
            progress[row.subset] = after
            yield row, dict(progress)

    def _passes_from(self, name: str, progress: Progress, ranks: Ranks) -> Iterator[tuple[Row, Progress]]:
        """A subset's rows, as often as its weight says: whole passes, and then the rest of one.

        Raises DataError if that is not a single row; since the subsets are interleaved, with the stream's first one.
        """
        given, passes, place = progress
        weight, size = self._weight(name), 0
        while passes < weight:
            left = weight - passes
            for number, content, after in self._read(name, place, ranks):
                size, row = number + 1, Row(f"{name}/{number}", content, name)
                if left >= 1 or derived_seed("weight", row.id) < left * 2**63:
                    given += 1
                    yield row, Progress(given, passes, after)
            passes, place = passes + 1, None
        if size and not given and ranks == ALONE:  # another rank may have some
            raise DataError(f"weights: {name}={weight:g} of {size} rows is not one; raise it, or leave the subset out")

    def _read(self, name: str, place: Any, ranks: Ranks) -> Iterator[tuple[int, Content, Any]]:
        """One pass over a rank's rows, with each one's number and the place after it."""
        rows: StreamedRows | Sequence[Content] = self.rows[name]
        if isinstance(rows, StreamedRows):
            return rows.read(ranks, place, self.config.max_rows)
        chosen = range(place or 0, min(len(rows), self.config.max_rows or len(rows)))
        return ((n, rows[n], n + 1) for n in chosen if ranks.takes(n))
