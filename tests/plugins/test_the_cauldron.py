import pickle
from collections import Counter

import datasets
import pytest
from hf_folder import cauldron_features, cauldron_row, encoded, write_dataset
from tiny import tiny_experiment

from nanovlm import ConfigError, DataError, ImageSpec, SkipSample, Turn, train
from nanovlm.blueprint import Part, open_dataset
from nanovlm.data.conversation import TextFormat
from nanovlm.data.images import open_image
from nanovlm.data.loader import Packing, Preparation, Steps
from nanovlm.data.mixture import Mixture
from nanovlm.data.stream import Stream
from nanovlm.data.tokenizer import byte_tokenizer
from nanovlm.data.workers import load
from nanovlm.experiment import Data

BROKEN = {"bytes": b"no picture", "path": None}
SUBSETS = {
    "colours": [
        cauldron_row("red", ("What colour?", "Red.")),
        cauldron_row("blue", ("What colour is this?", "Blue."), ("And the background?", "None.")),
        cauldron_row("green", ("What colour?", "Green.")),
    ],
    "pairs": [
        cauldron_row("red lime blue", ("Which is <image> but not <image> or <image>?", "The first.")),
        cauldron_row("red blue", ("Are they the same?", "No.")),
    ],
    "words": [cauldron_row("", ("What is two and two?", "Four."))],
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return str(write_dataset(tmp_path_factory.mktemp("cauldron"), SUBSETS, cauldron_features()))


@pytest.fixture
def open_split(registries):
    """Open a split as a run does."""

    def open_split(source: str, split: str = "train", **options):
        options = {"subsets": "all", "source": source, **options}
        return open_dataset(Part.of(registries.datasets, "data.train.0", "the_cauldron", options), split)

    return open_split


def samples(dataset) -> list:
    return [dataset[i] for i in range(len(dataset))]


def test_a_row_becomes_a_conversation_about_its_pictures(open_split, source):
    found = {sample.id: sample for sample in samples(open_split(source))}
    assert found["colours/1"].turns == [Turn("What colour is this?", "Blue."), Turn("And the background?", "None.")]
    assert found["pairs/0"].images == [encoded(colour) for colour in ("red", "lime", "blue")]  # still encoded
    assert found["words/0"].images == []
    assert {sample.category for sample in found.values()} == set(SUBSETS)
    for name, rows in SUBSETS.items():
        for i, row in enumerate(rows):
            sample = found[f"{name}/{i}"]
            assert [(turn.user, turn.assistant) for turn in sample.turns] == [
                (text["user"], text["assistant"]) for text in row["texts"]
            ]
            assert len(sample.images) == len(row["images"])


def test_pictures_can_be_decoded(open_split, source):
    sample = open_split(source, subsets="pairs")[0]
    assert [open_image(image).getpixel((0, 0)) for image in sample.images] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_subsets_come_in_the_order_they_are_named(open_split, source):
    dataset = open_split(source, subsets=["words", "colours"])
    assert [dataset.id(i) for i in range(len(dataset))] == ["words/0", "colours/0", "colours/1", "colours/2"]
    assert [dataset.id(i) for i in range(len(dataset))] == [sample.id for sample in samples(dataset)]


@pytest.mark.parametrize("subsets", ["all", ["all"], ["words", "all"]], ids=str)
def test_all_takes_every_subset(open_split, source, subsets):
    assert {sample.category for sample in samples(open_split(source, subsets=subsets))} == set(SUBSETS)


@pytest.mark.parametrize(("max_rows", "expected"), [(0, 6), (1, 3), (2, 5), (100, 6)])
def test_max_rows_takes_the_first_ones_of_each_subset(open_split, source, max_rows, expected):
    dataset, whole = open_split(source, max_rows=max_rows), open_split(source)
    assert len(dataset) == expected
    kept = [sample for sample in samples(whole) if not max_rows or int(sample.id.partition("/")[2]) < max_rows]
    assert samples(dataset) == kept


def test_an_id_stays_the_same_whatever_else_is_taken(open_split, source):
    alone = {sample.id: sample for sample in samples(open_split(source, subsets="pairs"))}
    among = {sample.id: sample for sample in samples(open_split(source, max_rows=2))}
    assert alone == {name: among[name] for name in ("pairs/0", "pairs/1")}


def test_only_the_first_picture_can_be_taken(open_split, source):
    for sample, whole in zip(
        samples(open_split(source, images="first")), samples(open_split(source, images="all")), strict=True
    ):
        assert sample.images == whole.images[:1]
        assert sample.turns == whole.turns


@pytest.mark.parametrize("index", [-1, 6, 100])
def test_an_index_beyond_the_ends_is_an_error(open_split, source, index):
    dataset = open_split(source)
    for read in (dataset.__getitem__, dataset.id):
        with pytest.raises(IndexError):
            read(index)


def test_it_travels_to_a_worker(open_split, source):
    dataset = open_split(source)
    assert samples(pickle.loads(pickle.dumps(dataset))) == samples(dataset)


def test_an_unknown_subset_names_the_nearest(open_split, source):
    with pytest.raises(ConfigError) as caught:
        open_split(source, subsets=["words", "color"])
    assert str(caught.value).splitlines() == [
        "data.train.0: subsets: unknown subset 'color'. Did you mean 'colours'?",
        "  Known here: colours, pairs, words",
        f"  in {source!r}; `all` takes them all",
    ]


def test_the_default_subsets_are_those_of_the_recipe(registries):
    subsets = registries.datasets.configure("the_cauldron", {}).subsets
    assert len(subsets) == len(set(subsets)) == 45
    assert not {"clevr_math", "okvqa", "spot_the_diff", "nlvr2", "mimic_cgd"} & set(subsets)


def test_no_subset_at_all_is_refused(open_split, source):
    with pytest.raises(ConfigError, match=r"data\.train\.0\.subsets=\[\]: list should have at least 1 item"):
        open_split(source, subsets=[])


def test_rows_of_another_form_are_refused(open_split, tmp_path):
    from datasets import Image, Value

    rows = [{"image": None, "caption": "a cat"}]
    other = write_dataset(tmp_path / "other", {"some": rows}, {"image": Image(), "caption": Value("string")})
    with pytest.raises(DataError) as caught:
        open_split(str(other))
    assert str(caught.value) == (
        f"data.train.0: source: the rows of '{other} some train' have no images[], texts[].user, texts[].assistant; "
        "expected are images[], texts[].user, texts[].assistant, "
        "and there are image, image.bytes, image.path, caption"
    )


def test_an_empty_dataset_is_refused(open_split, tmp_path):
    empty = write_dataset(tmp_path / "empty", {"some": []}, cauldron_features())
    with pytest.raises(
        DataError, match=r"^data\.train\.0: the_cauldron has no sample in its train split; `nanovlm list the_cauldron`"
    ):
        open_split(str(empty))


def test_an_empty_subset_shifts_nothing(open_split, tmp_path):
    subsets = {"first": SUBSETS["words"], "none": [], "last": SUBSETS["words"]}
    dataset = open_split(str(write_dataset(tmp_path / "some", subsets, cauldron_features())))
    assert [sample.id for sample in samples(dataset)] == ["first/0", "last/0"]


def test_it_is_for_training_only(open_split, source):
    with pytest.raises(DataError, match="the_cauldron has no sample in its test split"):
        open_split(source, "test")


@pytest.mark.parametrize(
    ("source", "tried"),
    [
        ("owner/gone", "it is not in the cache of the Hugging Face hub, and HF_HUB_OFFLINE is set"),
        ("./gone", "it is no hub id either (owner/name)"),
    ],
)
def test_a_source_that_is_not_to_be_had_says_what_was_tried(open_split, tmp_path, monkeypatch, source, tried):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        open_split(source)
    assert str(caught.value).splitlines() == [
        f"data.train.0.source: {source!r} is no folder here, and {tried}.",
        "  Without network, point it at a folder: data.train.0.source=FOLDER",
    ]


def test_unknown_weights_name_the_nearest(open_split, source):
    with pytest.raises(ConfigError) as caught:
        open_split(source, subsets=["words", "colours"], weights={"word": 2})
    assert str(caught.value).splitlines() == [
        "data.train.0: weights: unknown subset 'word'. Did you mean 'words'?",
        "  Known here: colours, words",
    ]


@pytest.mark.parametrize("weight", [0, -1.0, float("inf")])
def test_a_weight_is_more_than_nothing(open_split, source, weight):
    with pytest.raises(
        ConfigError, match=r"^data\.train\.0\.weights: words=.* should be more than 0; to leave a subset"
    ):
        open_split(source, weights={"words": weight})


def data_of(**options) -> Data:
    options = {"validation": {"share": 0.0}, "max_text_tokens": 200, **options}
    return Data.model_validate({"train": ["the_cauldron"], **options})


def steps_of(dataset, data: Data, samples: int) -> Steps:
    prepare = Preparation(TextFormat(byte_tokenizer(), "question_answer"), ImageSpec(4), data)
    return Steps(Mixture([dataset], [1.0], data, seed=0), prepare, Packing(2, 1000, 256), samples, samples)


def test_a_weight_is_how_often_an_epoch_passes_over_a_subset(open_split, source):
    dataset = open_split(source, weights={"words": 3, "pairs": 0.5})
    mixture = Mixture([dataset], [1.0], data_of(), seed=0)
    seen = Counter(dataset.id(index).partition("/")[0] for _, index in map(mixture.at, range(mixture.epoch_size)))
    assert seen == {"colours": 3, "words": 3, "pairs": 1}
    assert [dataset.id(i) for i in range(len(dataset))] == [open_split(source).id(i) for i in range(6)]


def test_a_weight_counts_on_the_rows_that_max_rows_leaves(open_split, source):
    mixture = Mixture([open_split(source, weights={"colours": 2}, max_rows=1)], [1.0], data_of(), seed=0)
    assert mixture.epoch_size == 2 + 1 + 1


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> str:
    """Two subsets of 60 and 20 rows of text alone."""
    subsets = {
        name: [cauldron_row("", (f"{name} {i}?", f"{i}")) for i in range(size)] for name, size in (("a", 60), ("b", 20))
    }
    return str(write_dataset(tmp_path_factory.mktemp("large"), subsets, cauldron_features()))


def test_the_validation_share_is_disjoint_and_the_data_seeds(open_split, large):
    def ids(dataset, seed: int) -> tuple[set, set]:
        mixture = Mixture([dataset], [1.0], data_of(validation={"share": 0.25}, seed=seed), seed=0)
        trained = {dataset.id(index) for _, index in map(mixture.at, range(mixture.epoch_size))}
        return trained, {dataset.id(index) for _, index in mixture.held_out}

    (trained, held), (_, other) = (ids(open_split(large), seed) for seed in (0, 1))
    assert not trained & held
    assert len(trained | held) == 80
    assert {"a", "b"} == {name.partition("/")[0] for name in held}
    assert held != other
    streamed = Stream(open_split(large, streaming=True), data_of(validation={"share": 0.25}), seed=0)
    assert {row.id for row in streamed.held_out()} == held  # read by whatever way
    weighty = ids(open_split(large, weights={"b": 3}), 0)
    assert weighty == (trained, held)
    assert ids(open_split(large, max_rows=10), 0)[1] == {name for name in held if int(name.partition("/")[2]) < 10}


def test_of_a_row_with_many_questions_the_leading_ones_are_kept(open_split, tmp_path):
    """As PlotQA has them."""
    turns = [(f"What is the value of bar {i}?", f"{i} million dollars.") for i in range(129)]
    dataset = open_split(
        str(write_dataset(tmp_path / "plots", {"some": [cauldron_row("red", *turns)]}, cauldron_features()))
    )
    (fit, whole, first) = (steps_of(dataset, data_of(turns=turns), 1)[0] for turns in ("fit", "all", "first"))
    text = TextFormat(byte_tokenizer(), "question_answer")
    length = len(text.conversation(dataset[0].turns[:3], 1).ids)
    assert length <= 200 < len(text.conversation(dataset[0].turns[:4], 1).ids)
    assert sizes(fit) == [(1, length + 2)]  # three turns, and a picture of two tokens
    assert whole.skipped == {"too long": 1}
    assert sizes(first) == [(1, len(text.conversation(dataset[0].turns[:1], 1).ids) + 2)]


def sizes(step) -> list[tuple[int, int]]:
    """The samples and tokens of each row."""
    return [(row.num_samples, row.num_tokens) for row in step.rows]


def test_text_pictures_and_turns_of_any_number_are_packed_together(open_split, source):
    step = steps_of(open_split(source), data_of(), 6)[0]
    assert (step.num_samples, sum(len(row.pixels) for row in step.rows)) == (6, 3 + 5)
    assert step.tally == {(f"data.train.0, subset '{name}'", ""): len(rows) for name, rows in SUBSETS.items()}


def test_a_stream_has_the_same_samples(open_split, source):
    dataset, stream = open_split(source), open_split(source, streaming=True)
    rows = list(stream.stream())
    streamed = {row.id: pickle.loads(pickle.dumps(stream)).sample(row) for row in rows}
    assert streamed == {sample.id: sample for sample in samples(dataset)}
    assert [row.id for row in rows] == [row.id for row in stream.stream()]
    assert all(row.subset == row.id.partition("/")[0] for row in rows)


def test_subsets_of_a_stream_take_turns(open_split, large):
    names = [row.id for row in open_split(large, streaming=True).stream()]
    assert names[:4] == ["a/0", "b/0", "a/1", "b/1"]
    assert sorted(names) == sorted(f"{name}/{i}" for name, size in (("a", 60), ("b", 20)) for i in range(size))


def test_subsets_of_known_sizes_are_interleaved_evenly(open_split, large):
    dataset = open_split(large, streaming=True)
    for name, size in (("a", 60), ("b", 20)):
        dataset.rows[name].size = size  # as a hub's card tells it
    names = "".join(row.subset for row in dataset.stream())
    assert all(names[n : n + 4].count("b") == 1 for n in range(0, 80, 4))


def test_weights_and_max_rows_hold_for_a_stream_too(open_split, large):
    dataset = open_split(large, streaming=True, max_rows=10, weights={"a": 2, "b": 0.5})
    seen = Counter(row.id for row in dataset.stream())
    assert {name: count for name, count in seen.items() if name.startswith("a/")} == {f"a/{i}": 2 for i in range(10)}
    half = {name for name in seen if name.startswith("b/")}
    assert 0 < len(half) < 10
    assert all(seen[name] == 1 and int(name[2:]) < 10 for name in half)


def test_a_weight_that_leaves_no_row_of_a_stream_is_named(open_split, large):
    with pytest.raises(DataError) as caught:
        open_split(large, streaming=True, weights={"b": 1e-9})
    assert str(caught.value) == (
        "data.train.0: weights: b=1e-09 of 20 rows is not one; raise it, or leave the subset out"
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_other_types_are_refused(open_split, tmp_path, streaming):
    from datasets import Value

    features = cauldron_features()
    features["texts"].feature["assistant"] = Value("int64")
    other = write_dataset(tmp_path / "other", {"some": [cauldron_row("red", ("What?", 5))]}, features)
    with pytest.raises(DataError) as caught:
        open_split(str(other), streaming=streaming)
    assert str(caught.value) == (
        f"data.train.0: source: the rows of '{other} some train' are of another kind than expected: "
        "texts[].assistant holds int64 instead of text"
    )


def test_rows_of_another_form_are_refused_in_a_stream_too(open_split, tmp_path):
    from datasets import Value

    other = write_dataset(tmp_path / "other", {"some": [{"caption": "a cat"}]}, {"caption": Value("string")})
    with pytest.raises(
        DataError, match=r"^data\.train\.0: source: the rows of '.*other some train' have no images\[\], "
    ):
        open_split(str(other), streaming=True)


def test_a_subset_that_is_skipped_as_a_whole_is_told_by_name(source, tmp_path):
    """At the end of a run, with how many and why."""
    rows = [cauldron_row("red", ("What?", None)), {**cauldron_row("red", ("What?", "Red.")), "images": [BROKEN]}]
    broken = str(write_dataset(tmp_path / "broken", {"bad": rows, "good": SUBSETS["words"]}, cauldron_features()))
    data = f"data.train=[{{name: the_cauldron, subsets: all, source: {broken}}}]"
    summary = train(tiny_experiment(data, "training.epochs=2"), tmp_path / "run")
    assert summary["skipped"] == {"no answer": 2, "undecodable picture": 2}
    assert summary["wholly_skipped"] == [
        "data.train.0, subset 'bad': all 4 of its samples that came up were skipped "
        "(2 no answer, 2 undecodable picture)"
    ]


def test_what_a_row_leaves_empty_is_no_crash(open_split, tmp_path):
    rows = [
        cauldron_row("red", (None, "Red."), ("What?", None)),
        {"images": None, "texts": [{"user": "Why?", "assistant": "So.", "source": None}]},
        {"images": [], "texts": None},
        {"images": [None], "texts": [{"user": "a", "assistant": "b", "source": None}]},
    ]
    dataset = open_split(str(write_dataset(tmp_path / "holes", {"some": rows}, cauldron_features())))
    assert dataset[0].turns == [Turn("", "Red."), Turn("What?", "")]
    assert (dataset[1].images, dataset[1].turns) == ([], [Turn("Why?", "So.")])
    assert dataset[2].turns == []
    with pytest.raises(SkipSample, match="no picture"):
        dataset[3]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_used_is_skipped_and_counted(open_split, tmp_path, workers):
    rows = [
        *SUBSETS["colours"],
        cauldron_row("red", ("What?", None)),
        {**cauldron_row("red", ("What?", "Red.")), "images": [BROKEN]},
        {**cauldron_row("red", ("What?", "Red.")), "images": [None]},
        {"images": [], "texts": []},
        *SUBSETS["words"],
    ]
    dataset = open_split(str(write_dataset(tmp_path / "broken", {"some": rows}, cauldron_features())))
    (step,) = load(steps_of(dataset, data_of(), len(rows)), workers)
    assert step.skipped == {"undecodable picture": 1, "no picture": 1, "no answer": 1, "no turn": 1}
    assert step.num_samples == 4
    shown = {tuple(pixels[:, 0, 0].tolist()) for row in step.rows for pixels in row.pixels}
    assert shown == {(255, 0, 0), (0, 0, 255), (0, 128, 0)}
