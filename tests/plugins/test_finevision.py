import datasets
import pytest
from hf_folder import cauldron_features, cauldron_row, write_dataset
from tiny import tiny_experiment

from nanovlm import ConfigError, DataError, SkipSample, Turn, train
from nanovlm.blueprint import Part, open_dataset

RATINGS = ("relevance", "image_correspondence", "visual_dependency", "formatting")
TURNS = [("What is it?", "A cat."), ("What colour?", "Black."), ("Is it big?", "No.")]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def features() -> dict:
    from datasets import List, Value

    lists = {f"{rating}_ratings": List(Value("int64")) for rating in RATINGS}
    return cauldron_features() | lists | {"relevance_min": Value("int64"), "source": Value("string")}


def row(*turns: tuple[str, str], **ratings: list[int | None] | None) -> dict:
    """A row as the hub has it, rated 5 wherever ``ratings`` say nothing."""
    given = {f"{rating}_ratings": ratings.get(rating, [5] * len(turns)) for rating in RATINGS}
    return cauldron_row("red", *turns) | given | {"relevance_min": 5, "source": "here"}


@pytest.fixture
def open_rows(registries, tmp_path):
    def open_rows(*rows: dict, **options):
        source = tmp_path / "fine"
        if not source.exists():
            write_dataset(source, {"some": list(rows)}, features())
        options = {"source": str(source), **options}
        return open_dataset(Part.of(registries.datasets, "data.train.0", "finevision", options), "train")

    return open_rows


def questions(sample) -> list[str]:
    return [turn.user for turn in sample.turns]


def test_by_default_every_turn_is_kept(open_rows):
    sample = open_rows(row(*TURNS, **{rating: [1, 1, 1] for rating in RATINGS}))[0]
    assert sample.turns == [Turn(*turn) for turn in TURNS]
    assert (sample.left_out, sample.category, sample.id) == ({}, "some", "some/0")


@pytest.mark.parametrize("rating", RATINGS)
@pytest.mark.parametrize(("minimum", "kept"), [(2, [0, 1, 2]), (3, [0, 2]), (4, [2]), (5, [2])])
def test_turns_rated_lower_than_a_minimum_are_left_out_and_counted(open_rows, rating, minimum, kept):
    sample = open_rows(row(*TURNS, **{rating: [3, 2, 5]}), **{f"{rating}_min": minimum})[0]
    assert questions(sample) == [TURNS[n][0] for n in kept]
    assert sample.left_out == ({f"{rating} below {minimum}": 3 - len(kept)} if len(kept) < 3 else {})


def test_a_turn_is_counted_once(open_rows):
    low = {"relevance": [1, 5, 5], "formatting": [1, 1, 5]}
    sample = open_rows(row(*TURNS, **low), relevance_min=2, formatting_min=2)[0]
    assert questions(sample) == ["Is it big?"]
    assert sample.left_out == {"relevance below 2": 1, "formatting below 2": 1}


@pytest.mark.parametrize("given", [None, [], [5], [5, None, None]], ids=str)
def test_a_turn_without_a_rating_is_kept(open_rows, given):
    sample = open_rows(row(*TURNS, relevance=given), relevance_min=5)[0]
    assert len(sample.turns) == 3


def test_a_missing_turn_shifts_no_rating(open_rows):
    rated = row(*TURNS, relevance=[5, 1, 5])
    rated["texts"][0] = None
    assert [turn.user for turn in open_rows(rated, relevance_min=2)[0].turns] == ["", "Is it big?"]


def test_a_row_of_which_nothing_is_left_is_skipped(open_rows):
    dataset = open_rows(row(*TURNS, relevance=[1, 1, 1]), relevance_min=2)
    with pytest.raises(SkipSample, match=r"^every turn rated too low$"):
        dataset[0]


def test_the_same_is_left_out_of_a_stream(open_rows):
    rows = (row(*TURNS, relevance=[1, 5, 3]), row(*TURNS))
    dataset, stream = (open_rows(*rows, relevance_min=3, streaming=streaming) for streaming in (False, True))
    assert [stream.sample(row) for row in stream.stream()] == [dataset[0], dataset[1]]


def test_what_was_left_out_is_in_the_summary(open_rows, tmp_path):
    rows = (row(*TURNS, relevance=[1, 5, 1]), row(*TURNS), row(*TURNS, relevance=[1, 1, 1]))
    source = open_rows(*rows).config.source
    data = f"data.train=[{{name: finevision, source: {source}, relevance_min: 2}}]"
    summary = train(tiny_experiment(data, "training.epochs=2"), tmp_path / "run")
    assert summary["turns_left_out"] == {"relevance below 2": 4}
    assert summary["skipped"] == {"every turn rated too low": 2}
    assert summary["samples"] == 4


def test_rows_without_ratings_are_refused(registries, tmp_path):
    source = write_dataset(tmp_path / "plain", {"some": [cauldron_row("red", *TURNS)]}, cauldron_features())
    part = Part.of(registries.datasets, "data.train.0", "finevision", {"source": str(source)})
    with pytest.raises(DataError) as caught:
        open_dataset(part, "train")
    message = str(caught.value)
    assert "have no relevance_ratings[], image_correspondence_ratings[], visual_dependency_ratings[]" in message
    assert "expected are images[], texts[].user, texts[].assistant, relevance_ratings[]" in message


def test_ratings_that_are_no_numbers_are_refused(registries, tmp_path):
    from datasets import List, Value

    rated = features() | {"relevance_ratings": List(Value("string"))}
    rows = [row(*TURNS, relevance=["5", "5", "5"])]
    source = write_dataset(tmp_path / "words", {"some": rows}, rated)
    part = Part.of(registries.datasets, "data.train.0", "finevision", {"source": str(source)})
    with pytest.raises(
        DataError, match=r"another kind than expected: relevance_ratings\[\] holds string instead of nu"
    ):
        open_dataset(part, "train")


def test_a_minimum_is_one_of_the_ratings(open_rows):
    with pytest.raises(ConfigError, match=r"^data\.train\.0\.relevance_min=6: input should be less than or equal to 5"):
        open_rows(row(*TURNS), relevance_min=6)
