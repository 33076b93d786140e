import pickle
from collections import Counter

import datasets
import pytest
from datasets import Features, Image, List, Value
from hf_folder import cauldron_features, cauldron_row, cell, encoded, write_dataset

from nanovlm import DataError, SkipSample
from nanovlm.data import huggingface
from nanovlm.data.huggingface import config_names, load_rows, one_colour, picture, stream_rows
from nanovlm.data.images import open_image
from nanovlm.hub import HubError

ROWS = {
    "one": [cauldron_row("red", ("What?", "Red.")), cauldron_row("red blue", ("Both?", "Yes."), ("Sure?", "Yes."))],
    "two": [cauldron_row("", ("Why?", "So."))],
}
COLUMNS = ["images[]", "texts[].user"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    return write_dataset(tmp_path / "source", ROWS, cauldron_features())


def write(folder, features, rows=()):
    """One file of rows, without a README.md."""
    folder.mkdir()
    columns = {key: [row[key] for row in rows] for key in features}
    datasets.Dataset.from_dict(columns, features=Features(features)).to_parquet(folder / "train.parquet")
    return str(folder)


def test_rows_are_as_they_were_written(folder):
    for name, expected in ROWS.items():
        rows = load_rows(str(folder), name, "train", COLUMNS)
        assert [rows[i] for i in range(len(rows))] == expected


def test_streamed_rows_are_the_same_each_time(folder):
    for name, expected in ROWS.items():
        rows = stream_rows(str(folder), name, "train", COLUMNS)
        assert list(rows) == list(rows) == expected


def test_a_stream_is_read_no_further_than_asked(folder, tmp_path):
    rows = stream_rows(str(folder), "one", "train", COLUMNS)
    assert next(iter(rows)) == ROWS["one"][0]
    assert not list(tmp_path.rglob("*.arrow"))  # nothing was prepared


def test_two_readers_of_a_stream_do_not_disturb_each_other(tmp_path):
    """The trainer reads on in a thread while the held-out rows are collected."""
    expected = [{"text": str(i)} for i in range(50)]
    rows = stream_rows(write(tmp_path / "many", {"text": Value("string")}, expected), None, "train", ["text"])
    first, second = iter(rows), iter(rows)
    before = rows._table.state_dict()
    mixed = [(next(first), next(second)) for _ in range(20)]
    assert rows._table.state_dict() == before  # where the library would keep the place of both
    assert [row for row, _ in mixed] + list(first) == expected
    assert [row for _, row in mixed] + list(second) == expected


def test_a_stream_tells_its_size_if_the_source_does(folder):
    assert stream_rows(str(folder), "one", "train", COLUMNS).size is None
    header = (folder / "README.md").read_text().rpartition("---")[0]
    splits = "dataset_info:\n- config_name: one\n  splits:\n  - {name: train, num_bytes: 9, num_examples: 2}\n---\n"
    (folder / "README.md").write_text(header + splits)
    assert stream_rows(str(folder), "one", "train", COLUMNS).size == 2


def test_a_stream_without_the_columns_is_refused_with_its_first_row(tmp_path):
    source = write(tmp_path / "other", {"text": Value("string")}, [{"text": "a"}])
    with pytest.raises(DataError) as caught:
        next(iter(stream_rows(source, None, "train", ["user"])))
    assert str(caught.value) == (
        f"source: the rows of '{source} train' have no user; expected are user, and there are text"
    )


def test_a_stream_that_breaks_off_says_so(folder):
    rows = stream_rows(str(folder), "one", "train", COLUMNS)
    (folder / "one" / "train-00000-of-00001.parquet").write_bytes(b"no longer")
    with pytest.raises(DataError, match=r"^source: '.*/source' cannot be read as a dataset \(\w+: .+\)$"):
        list(rows)


def test_pictures_stay_the_bytes_they_are(folder):
    row = load_rows(str(folder), "one", "train", COLUMNS)[1]
    assert [picture(image) for image in row["images"]] == [encoded("red"), encoded("blue")]


def test_reading_rows_decodes_no_picture(tmp_path):
    broken = {"image": {"bytes": b"no picture", "path": None}}
    rows = load_rows(write(tmp_path / "broken", {"image": Image()}, [broken]), None, "train", ["image"])
    assert rows[0] == broken


def test_rows_travel_to_a_worker(folder):
    travelled = pickle.loads(pickle.dumps(load_rows(str(folder), "one", "train", COLUMNS)))
    assert [travelled[i] for i in range(len(travelled))] == ROWS["one"]


def test_an_index_beyond_the_end_is_an_error(folder):
    rows = load_rows(str(folder), "one", "train", COLUMNS)
    with pytest.raises(IndexError):
        rows[2]


def test_the_subsets_of_a_folder_are_known(folder, tmp_path):
    assert sorted(config_names(str(folder))) == ["one", "two"]
    assert config_names(write(tmp_path / "plain", {"text": Value("string")}, [{"text": "a"}])) == ["default"]


@pytest.mark.parametrize("name", ["json", "parquet", "imagefolder"])
def test_a_folder_called_like_a_reader_of_the_library_is_a_folder(tmp_path, monkeypatch, name):
    write(tmp_path / name, {"text": Value("string")}, [{"text": "mine"}])
    monkeypatch.chdir(tmp_path)
    for source in (name, f"./{name}"):
        assert load_rows(source, None, "train", ["text"])[0] == {"text": "mine"}
        assert config_names(source) == ["default"]


TEXTS = {"user": Value("string"), "assistant": Value("string")}


@pytest.mark.parametrize(
    ("features", "missing", "there"),
    [
        (
            {"image": Image(), "label": Value("int64")},
            "images[], texts[].user",
            "image, image.bytes, image.path, label",
        ),
        ({"images": List(Image()), "texts": List({"question": Value("string")})}, "texts[].user", "texts[].question"),
        ({"images": Image(), "texts": List(TEXTS)}, "images[]", "images.bytes"),  # one picture and not a list of them
        ({"images": List(Image()), "texts": TEXTS}, "texts[].user", "texts.user, texts.assistant"),
        ({"images": List(Image()), "texts": {"user": List(Value("string"))}}, "texts[].user", "texts.user[]"),
        ({"images": List(Image()), "texts": List(Value("string"))}, "texts[].user", "images[].path, texts[]"),
    ],
)
def test_columns_that_are_missing_are_named_beside_those_there(tmp_path, features, missing, there):
    source = write(tmp_path / "other", features, [dict.fromkeys(features)])
    with pytest.raises(DataError) as caught:
        load_rows(source, None, "train", COLUMNS)
    message = str(caught.value)
    assert message.startswith(f"source: the rows of '{source} train' have no {missing}; ")
    assert "expected are images[], texts[].user, and there are " in message
    assert there in message.partition("there are ")[2]


def test_more_columns_than_expected_are_fine(tmp_path):
    features = {"text": Value("string"), "more": Value("int64")}
    assert load_rows(write(tmp_path / "more", features, [{"text": "a", "more": 1}]), None, "train", ["text"])[0]["more"]


@pytest.mark.parametrize(
    ("config_name", "split", "reason"),
    [("three", "train", "BuilderConfig 'three' not found. Available: ['one', 'two']"), ("one", "val", "val")],
)
def test_what_a_folder_lacks_is_told_with_what_it_has(folder, config_name, split, reason):
    with pytest.raises(DataError) as caught:
        load_rows(str(folder), config_name, split, COLUMNS, "data_source")
    message = str(caught.value)
    assert message.startswith(f"data_source: {str(folder)!r} cannot be read as a dataset (ValueError: ")
    assert reason in message


@pytest.mark.parametrize("content", [{}, {"README.md": "---\nconfigs: 3\n---\n"}, {"train.parquet": "no parquet"}])
def test_a_folder_that_is_no_dataset_says_so(tmp_path, content):
    folder = tmp_path / "other"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    with pytest.raises(DataError, match=r"^source: '.*/other' cannot be read as a dataset \(\w+: .+\)$"):
        load_rows(str(folder), None, "train", [])


def test_code_beside_the_rows_is_not_run(folder, tmp_path):
    code = f"open({str(tmp_path / 'ran')!r}, 'w')"
    (folder / "dataset.py").write_text(code)
    assert len(load_rows(str(folder), "one", "train", COLUMNS)) == 2
    (folder / f"{folder.name}.py").write_text(code)  # by the name that the library once ran
    with pytest.raises(DataError, match=r"cannot be read as a dataset \(RuntimeError: .* found source\.py\)$"):
        load_rows(str(folder), "two", "train", COLUMNS)
    assert not (tmp_path / "ran").exists()


def test_a_split_without_rows_is_empty(tmp_path):
    folder = write_dataset(tmp_path / "empty", {"some": []}, cauldron_features())
    assert len(load_rows(str(folder), "some", "train", COLUMNS)) == 0


@pytest.mark.parametrize("read", [load_rows, stream_rows])
def test_what_is_no_folder_is_told_with_its_option(read):
    with pytest.raises(HubError) as caught:
        read("owner/name", None, "train", [])
    assert str(caught.value.at("data.train.1")).splitlines() == [
        "data.train.1.source: 'owner/name' is no folder here, and it is not in the cache of the Hugging Face hub, "
        "and HF_HUB_OFFLINE is set.",
        "  Without network, point it at a folder: data.train.1.source=FOLDER",
    ]


def test_without_network_the_librarys_cache_is_used_at_once(folder, monkeypatch):
    """What was downloaded once is still there when the hub is not."""
    calls = Counter()

    def load_dataset_builder(source, config_name):
        calls[datasets.config.HF_HUB_OFFLINE] += 1
        return original(str(folder), config_name)

    original = datasets.load_dataset_builder
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    for reason in (OSError("no network"), None):
        monkeypatch.setattr(huggingface, "_unreachable", lambda source, reason=reason: reason)
        assert load_rows("owner/name", "two", "train", COLUMNS)[0] == ROWS["two"][0]
    assert calls == {True: 1, False: 1}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"bytes": b"abc", "path": "a.png"}, b"abc"),
        ({"bytes": None, "path": "a.png"}, "a.png"),
        (b"abc", b"abc"),
        ("a.png", "a.png"),
    ],
    ids=repr,
)
def test_a_picture_is_its_bytes_or_its_path(value, expected):
    assert picture(value) == expected


@pytest.mark.parametrize("value", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}, {}, b""], ids=repr)
def test_no_picture_is_skipped(value):
    with pytest.raises(SkipSample, match=r"^no picture$"):
        picture(value)


def test_a_picture_of_one_colour_is_one():
    assert open_image(picture(one_colour("blue"))).getcolors() == [(64, (0, 0, 255))]
    assert picture(cell("red")) == encoded("red")
