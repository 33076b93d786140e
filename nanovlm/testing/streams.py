"""What every dataset must do that can only be read from its beginning, or that can be read so by its `streaming`."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from functools import partial
from itertools import islice, zip_longest
from typing import Any

from nanovlm.data.dataset import Dataset, Row
from nanovlm.data.ranks import ALONE, Ranks
from nanovlm.testing.checks import NotHere, Subject, Violation, check, doing
from nanovlm.testing.datasets import MOST, Member, content, opened, read

WORLDS = (2, 3)


def stream_of(subject: Subject) -> Dataset:
    """The train split as a stream. NotHere for a dataset that is none, even by its option `streaming`."""
    dataset = opened(subject, "train")
    if not dataset.streaming and hasattr(subject.config, "streaming"):
        dataset = opened(subject, "train", subject.config.model_copy(update={"streaming": True}))
    if not dataset.streaming:
        raise NotHere("it is no stream")
    return dataset


def rows_of(dataset: Dataset) -> list[Row]:
    """One pass."""
    rows = list(islice(dataset.stream(), MOST + 1))
    if not rows:
        raise NotHere("it has nothing to train on")
    if len(rows) > MOST:
        raise Violation(f"has more than {MOST} rows in a pass by Config.tiny(), or no end: give it few, for checks")
    return rows


def names(rows: Iterable[Row]) -> list[tuple[str, str]]:
    return [(row.id, row.subset) for row in rows]


@check("dataset")
def rows_come_again(subject: Subject) -> None:
    """gives the same rows in each pass of its stream, also where two passes are read at once."""
    dataset = stream_of(subject)
    expected = names(rows_of(dataset))
    if names(dataset.stream()) != expected:
        raise Violation("gives other rows in the second pass of its stream: begin each `stream()` anew")
    pairs = zip_longest(dataset.stream(), dataset.stream())
    if [row and row[:1] for pair in pairs for row in pair] != [(name,) for name, _ in expected for _ in range(2)]:
        raise Violation("mixes two passes that are read in turns: keep a pass's place in its generator, not in `self`")


@check("dataset")
def rows_become_samples(subject: Subject) -> None:
    """makes of each row of its stream a sample of the same id, in a worker process too."""
    dataset = stream_of(subject)
    for number, row in enumerate(rows_of(dataset)):
        if not isinstance(row, Row):
            raise Violation(
                f"gives {type(row).__name__} as row {number} of its stream: give a nanovlm.data.dataset.Row"
            )
        with doing(f"to pickle row {number} for a worker process", subject):
            travelled: Row = pickle.loads(pickle.dumps(row))
        here, there = (
            read(Member(each.id, partial(dataset.sample, each), f"row {number}"), subject) for each in (row, travelled)
        )
        if content(here) != content(there):
            raise Violation(f"makes another sample of row {number} once it was pickled and unpickled")
        if getattr(here, "id", row.id) != row.id:
            raise Violation(f"calls row {number} {row.id!r}, and the sample of it {getattr(here, 'id', '')!r}")


@check("dataset")
def states_are_json(subject: Subject) -> None:
    """gives with each row a state that JSON can keep, and that later rows do not change."""
    dataset = stream_of(subject)
    rows_of(dataset)
    with doing("to write a state of its stream as JSON (numbers, texts, lists and mappings of these)", subject):
        given = [(state, json.dumps(state)) for _, state in dataset.stream_from(None, ALONE)]
        if any(json.dumps(state) != then for state, then in given):
            raise Violation("changes a state of its stream after it was given: give a copy with each row")


@check("dataset")
def goes_on_after_a_state(subject: Subject) -> None:
    """goes on exactly after the row of a state, on every rank: a run that was stopped sees what it would have seen."""
    dataset = stream_of(subject)
    expected = names(rows_of(dataset))
    for ranks in (ALONE, *(Ranks(rank, WORLDS[0]) for rank in range(WORLDS[0]))):
        whole = list(dataset.stream_from(None, ranks))
        if ranks == ALONE and names(row for row, _ in whole) != expected:
            raise Violation("gives other rows by stream_from(None, ...) than by stream(): both are one pass")
        for number, (_, state) in enumerate(whole, start=1):
            rest = dataset.stream_from(_kept(state), ranks)
            if names(row for row, _ in rest) != names(row for row, _ in whole[number:]):
                raise Violation(
                    f"goes on with other rows than those after row {number} when it is given that row's state (rank "
                    f"{ranks.rank} of {ranks.world})"
                )


def _kept(state: Any) -> Any:
    """As a checkpoint gives it back."""
    return json.loads(json.dumps(state))


@check("dataset")
def ranks_share_the_rows(subject: Subject) -> None:
    """divides the rows of its stream between ranks: each row is one rank's, and none is lost."""
    dataset = stream_of(subject)
    expected = sorted(names(rows_of(dataset)))
    for world in WORLDS:
        parts = [names(row for row, _ in dataset.stream_from(None, Ranks(rank, world))) for rank in range(world)]
        given = sorted(name for part in parts for name in part)
        if given != expected:
            lost, twice = set(expected) - set(given), len(given) - len(set(given))
            what = f"{len(lost)} rows to none" if lost else f"{twice} rows more than once"
            raise Violation(f"gives of {len(expected)} rows {what} of {world} ranks: ask ranks.takes(number) for each")
