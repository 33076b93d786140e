import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

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
COLUMNS = {"images[]": "pictures", "texts[].user": "text"}

TEXT = {"text": "text"}


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
    rows = stream_rows(write(tmp_path / "many", {"text": Value("string")}, expected), None, "train", TEXT)
    first, second = iter(rows), iter(rows)
    mixed = [(next(first), next(second)) for _ in range(20)]
    assert [row for row, _ in mixed] + list(first) == expected
    assert [row for _, row in mixed] + list(second) == expected


IN_A_THREAD = """
import sys
from threading import Thread
from nanovlm.data.huggingface import stream_rows
rows = stream_rows(sys.argv[1], "one", "train", {})
next(iter(rows))
reader = Thread(target=lambda: print(len(list(rows)), flush=True))
reader.start()
reader.join()
"""


def test_a_stream_is_read_in_a_thread_of_its_own(folder):
    """In a process of its own: the file system keeps something for each thread, and tests before this one, too."""
    done = subprocess.run([sys.executable, "-c", IN_A_THREAD, str(folder)], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr.count("Error")) == ("2", 0)


def test_a_stream_tells_its_size_if_the_source_does(folder):
    assert stream_rows(str(folder), "one", "train", COLUMNS).size is None
    header = (folder / "README.md").read_text().rpartition("---")[0]
    splits = "dataset_info:\n- config_name: one\n  splits:\n  - {name: train, num_bytes: 9, num_examples: 2}\n---\n"
    (folder / "README.md").write_text(header + splits)
    assert stream_rows(str(folder), "one", "train", COLUMNS).size == 2


def test_a_stream_without_the_columns_is_refused_with_its_first_row(tmp_path):
    source = write(tmp_path / "other", {"text": Value("string")}, [{"text": "a"}])
    with pytest.raises(DataError) as caught:
        next(iter(stream_rows(source, None, "train", {"user": "text"})))
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
    rows = load_rows(write(tmp_path / "broken", {"image": Image()}, [broken]), None, "train", {"image": "pictures"})
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
        assert load_rows(source, None, "train", TEXT)[0] == {"text": "mine"}
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
    assert load_rows(write(tmp_path / "more", features, [{"text": "a", "more": 1}]), None, "train", TEXT)[0]["more"]


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
        load_rows(str(folder), None, "train", {})


def rewrite(folder, *texts: str, subset: str = "one") -> Path:
    """Other rows in one of the files."""
    rows = [cauldron_row("", (text, "So.")) for text in texts]
    table = datasets.Dataset.from_list(rows, features=Features(cauldron_features()))
    file = folder / subset / "train-00000-of-00001.parquet"
    table.to_parquet(file)
    return file


def asked(folder, subset: str = "one") -> list[str]:
    return [row["texts"][0]["user"] for row in load_rows(str(folder), subset, "train", COLUMNS)]


def test_rows_that_changed_are_read_anew(folder, tmp_path):
    assert asked(folder) == ["What?", "Both?"]
    rewrite(folder, "New?")
    assert asked(folder) == ["New?"]
    file = rewrite(folder, "Old?")  # of the same length
    os.utime(file, ns=(0, 10**18))
    assert asked(folder) == ["Old?"]
    assert asked(folder, "two") == ["Why?"]
    assert len(list(tmp_path.rglob("*.arrow"))) == 2  # of each subset, the last state only


def test_rows_that_did_not_change_are_prepared_once(folder, tmp_path):
    asked(folder)
    (prepared,) = tmp_path.rglob("*.arrow")
    before = prepared.stat().st_mtime_ns
    (folder / "more.txt").write_text("nothing to do with the rows")
    rewrite(folder, "Other?", subset="two")
    asked(folder)
    assert prepared.stat().st_mtime_ns == before


def test_another_folder_of_the_same_name_has_its_own_rows(folder, tmp_path):
    assert asked(folder) == ["What?", "Both?"]
    other = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, other)  # with the times of the files
    rewrite(other, "Other?")
    assert (asked(other), asked(folder)) == (["Other?"], ["What?", "Both?"])


@pytest.mark.parametrize(
    ("features", "columns", "told"),
    [
        ({"text": Value("int64")}, TEXT, "text holds int64 instead of text"),
        ({"text": Value("binary")}, TEXT, "text holds binary instead of text"),
        ({"images": List(Value("int64"))}, {"images[]": "pictures"}, "images[] holds int64 instead of pictures"),
        (
            {"image": {"url": Value("string")}},
            {"image": "pictures"},
            "image holds struct<url: string> instead of pictures",
        ),
        (
            {"rated": List(Value("string")), "text": Value("bool")},
            {"rated[]": "numbers", "text": "text"},
            "rated[] holds string instead of numbers, text holds bool instead of text",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_columns_that_hold_something_else_are_named_with_what_they_hold(tmp_path, features, columns, told):
    source = write(tmp_path / "other", features, [dict.fromkeys(features)])
    for read in (load_rows, lambda *what: next(iter(stream_rows(*what)))):
        with pytest.raises(DataError) as caught:
            read(source, None, "train", columns)
        assert str(caught.value) == (f"source: the rows of '{source} train' are of another kind than expected: {told}")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("text", Value("string")),
        ("text", Value("large_string")),
        ("text", Value("null")),
        ("numbers", Value("int8")),
        ("numbers", Value("float32")),
        ("pictures", Image()),
        ("pictures", Value("binary")),
        ("pictures", Value("string")),
    ],
    ids=str,
)
def test_every_way_to_store_a_kind_is_read(tmp_path, kind, value):
    source = write(tmp_path / "other", {"some": value}, [{"some": None}])
    assert load_rows(source, None, "train", {"some": kind})[0] == {"some": None}


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
        read("owner/name", None, "train", {})
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
