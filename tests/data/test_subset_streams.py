"""Subsets as a stream: resumed in the middle of any of them, and divided by rank."""

import json
from collections import Counter

import datasets
import pytest
from hf_folder import cauldron_features, cauldron_row, write_dataset
from numbered import data_of

from nanovlm import ImageSpec
from nanovlm.blueprint import Part, open_dataset
from nanovlm.data.conversation import TextFormat
from nanovlm.data.loader import Packing, Preparation
from nanovlm.data.ranks import Ranks
from nanovlm.data.stream import Stream, StreamedSteps
from nanovlm.data.tokenizer import byte_tokenizer
from nanovlm.data.workers import load


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    """Two subsets of 60 and 20 rows of text alone."""
    subsets = {
        name: [cauldron_row("", (f"{name} {i}?", f"{i}")) for i in range(size)] for name, size in (("a", 60), ("b", 20))
    }
    return str(write_dataset(tmp_path_factory.mktemp("source"), subsets, cauldron_features()))


@pytest.fixture
def opened(registries):
    """Open the source, or another, as a run does."""

    def opened(source: str, **options):
        options = {"subsets": "all", "source": source, "streaming": True, **options}
        return open_dataset(Part.of(registries.datasets, "data.train.0", "the_cauldron", options), "train")

    return opened


def kept(state):
    """As a checkpoint gives it back."""
    return json.loads(json.dumps(state))


WEIGHTY = {"weights": {"a": 2, "b": 0.5}, "max_rows": 30}


@pytest.mark.parametrize("options", [{}, WEIGHTY, {"weights": {"b": 3.5}}], ids=["plain", "weighty", "often"])
@pytest.mark.parametrize("known", [False, True], ids=["turns", "evenly"])
@pytest.mark.parametrize("ranks", [Ranks(0, 1), Ranks(1, 2)], ids=str)
def test_after_any_row_of_a_stream_the_same_rows_follow(opened, source, options, known, ranks):
    def rows(state=None) -> list:
        dataset = opened(source, **options)
        if known:
            dataset.rows["a"].size, dataset.rows["b"].size = 60, 20
        return [(row, kept(after)) for row, after in dataset.stream_from(state, ranks)]

    whole = rows()
    for n in (1, 4, 20, len(whole) - 1, len(whole)):
        assert rows(whole[n - 1][1]) == whole[n:]


@pytest.mark.parametrize("options", [{}, WEIGHTY], ids=["plain", "weighty"])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_divide_a_stream_without_loss(opened, source, options, world):
    dataset = opened(source, **options)
    parts = [row.id for rank in range(world) for row, _ in dataset.stream_from(None, Ranks(rank, world))]
    assert Counter(parts) == Counter(row.id for row in dataset.stream())


def test_the_rows_that_come_with_the_plugin_are_divided_and_resumed_too(opened):
    dataset = opened("tiny")
    whole = list(dataset.stream_from(None, Ranks()))
    assert list(dataset.stream_from(whole[0][1], Ranks())) == whole[1:]
    assert [[row.id for row, _ in dataset.stream_from(None, Ranks(rank, 3))] for rank in range(3)] == [
        ["tiny/0"],
        ["tiny/1"],
        [],
    ]


def test_a_streamed_run_goes_on_in_the_middle_of_an_epoch(opened, source):
    """Through windows, the validation share and workers."""

    def steps() -> StreamedSteps:
        data = data_of(share=0.1, max_text_tokens=200)
        prepare = Preparation(TextFormat(byte_tokenizer(), "question_answer"), ImageSpec(4), data)
        stream = Stream(opened(source, **WEIGHTY), data, seed=0)
        return StreamedSteps(stream, prepare, Packing(2, 1000, 256), 7, 120)

    def ids(made) -> list:
        return [row.token_ids.tolist() for step in made for row in step.rows]

    whole = list(load(steps(), 0))
    for n in (1, 9, 14):
        position = kept(whole[n - 1].position)
        assert ids(load(steps().resumed(n, position), 2)) == ids(whole[n:])
