"""Streams of several files: resumed in any of them, and divided by rank."""

import json
from collections import Counter

import datasets
import pyarrow.parquet
import pytest
from datasets import Features, Value

from nanovlm import DataError
from nanovlm.data import huggingface
from nanovlm.data.huggingface import StreamedRows, stream_rows
from nanovlm.data.ranks import ALONE, Ranks
from nanovlm.data.shards import TableShards

SIZES = [40, 3, 17, 1, 70, 9, 25]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def opened(monkeypatch):
    """The shards whose rows are read, and those whose rows are counted."""
    found = {"batches": [], "size": []}
    for name, shards in found.items():
        plain = getattr(TableShards, name)
        monkeypatch.setattr(
            TableShards, name, lambda self, n, plain=plain, shards=shards: shards.append(n) or plain(self, n)
        )
    return found


@pytest.fixture
def written(tmp_path):
    """``written(sizes)``: a source whose rows are numbered on through files of these sizes."""

    def written(sizes: list[int], suffix: str = "parquet") -> str:
        folder = tmp_path / "source"
        folder.mkdir(exist_ok=True)
        first = 0
        for n, size in enumerate(sizes):
            write(folder / f"train-{n}.{suffix}", [str(i) for i in range(first, first + size)])
            first += size
        return str(folder)

    return written


def write(file, texts: list[str]) -> None:
    table = datasets.Dataset.from_dict({"text": texts}, features=Features({"text": Value("string")}))
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        table.to_parquet(file)


def rows_of(source: str) -> StreamedRows:
    return stream_rows(source, None, "train", {"text": "text"})


def texts(rows: StreamedRows, ranks: Ranks = ALONE, state=None, stop: int = 0) -> list[tuple[int, str]]:
    return [(number, row["text"]) for number, row, _ in rows.read(ranks, state, stop)]


@pytest.mark.parametrize("ranks", [ALONE, Ranks(0, 3), Ranks(2, 3), Ranks(3, 9)], ids=str)
def test_after_any_row_the_same_rows_follow(written, ranks):
    source = written(SIZES)
    whole = list(rows_of(source).read(ranks))
    assert [row["text"] for _, row, _ in whole] == [str(number) for number, _, _ in whole]
    for n in range(0, len(whole), 5):
        state = json.loads(json.dumps(whole[n][2]))
        assert list(rows_of(source).read(ranks, state)) == whole[n + 1 :]


def test_files_that_were_read_are_not_opened_again(written, opened):
    rows = rows_of(written(SIZES))
    states = [state for _, _, state in rows.read()]
    ends = [sum(SIZES[: n + 1]) for n in range(len(SIZES))]
    for given in (1, 39, 40, 43, 60, 61, 100, 165):
        opened["batches"].clear()
        assert len(texts(rows, state=states[given - 1])) == sum(SIZES) - given
        assert opened == {"batches": [n for n, end in enumerate(ends) if end > given], "size": []}


def test_files_that_were_read_are_of_no_use_any_more(written, tmp_path):
    """Not by what this project calls: other rows in them change nothing of what follows."""
    source = written(SIZES)
    *_, (_, _, state) = rows_of(source).read(stop=50)
    expected = texts(rows_of(source), state=state)
    for n in (0, 1):
        write(tmp_path / "source" / f"train-{n}.parquet", ["other"] * (5 + n))
    assert texts(rows_of(source), state=state) == expected == [(i, str(i)) for i in range(50, sum(SIZES))]


def test_rows_before_the_state_are_not_decoded(written, monkeypatch):
    decoded = []
    plain = huggingface.read_shards

    class Watched:
        def __init__(self, table) -> None:
            self.schema, self.to_pylist = table.schema, lambda: decoded.append(1) or table.to_pylist()

    def watched(*args):
        return ((number, Watched(table), place) for number, table, place in plain(*args))

    rows = rows_of(written([100]))
    states = [state for _, _, state in rows.read()]
    monkeypatch.setattr(huggingface, "read_shards", watched)
    assert len(texts(rows, state=states[89])) == len(decoded) == 10


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("files", [1, 4, 7])
def test_ranks_take_every_row_once(written, files, world, suffix):
    source = written(SIZES[:files], suffix)
    seen = Counter(pair for rank in range(world) for pair in texts(rows_of(source), Ranks(rank, world)))
    assert seen == Counter((i, str(i)) for i in range(sum(SIZES[:files])))


def test_a_rank_reads_its_own_files(written, opened):
    """Of another's it reads how many rows there are."""
    texts(rows_of(written(SIZES[:6])), Ranks(1, 3))
    assert opened == {"batches": [1, 4], "size": [0, 2, 3]}
    assert [pyarrow.parquet.read_metadata(f"{written(SIZES)}/train-{n}.parquet").num_rows for n in (0, 2)] == [40, 17]


def test_files_that_cannot_be_counted_are_read_by_every_rank(written, opened):
    texts(rows_of(written(SIZES[:6], "jsonl")), Ranks(1, 3))
    assert opened == {"batches": list(range(6)), "size": []}


def test_another_number_of_files_is_told(written):
    states = [state for _, _, state in rows_of(written(SIZES[:3])).read()]
    source = written(SIZES)
    with pytest.raises(DataError) as caught:
        texts(rows_of(source), state=states[20])
    assert str(caught.value) == (
        f"source: the rows of '{source} train' are in 7 files, and were in 3 when the run was interrupted; "
        "bring those back, or begin a new run"
    )
