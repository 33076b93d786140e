import json
import re
from pathlib import Path

import pytest
from PIL import Image
from tiny import QUICKSTART, tiny_experiment

from nanovlm import ConfigError, DataError, Turn, VisionLanguageModel, load_experiment, train
from nanovlm.blueprint import Part, open_benchmark, open_dataset
from nanovlm.data.images import open_image

GUIDE = (Path(__file__).parents[2] / "experiments" / "README.md").read_text(encoding="utf-8")
OWN_PICTURES = GUIDE.partition("## Train on your own pictures\n")[2].partition("\n## ")[0]
LINES, EXPERIMENT = (re.search(rf"```{kind}\n(.*?)```", OWN_PICTURES, re.DOTALL)[1] for kind in ("json", "yaml"))
LINE, CAPTION = LINES.splitlines()
LOOKS = (
    'whose lines look like {"images": ["a.jpg"], "turns": [{"user": "Who is this?", "assistant": "Tom."}]} '
    'or {"file_name": "a.jpg", "text": "Tom sleeps."}'
)

ASKED = {"images": ["red.png"], "turns": [{"user": "What colour?", "assistant": "Red."}]}


@pytest.fixture
def folder(tmp_path):
    """A data folder with two pictures, and one more beside it."""
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    for name, colour in (("red.png", "red"), ("deep/blue.png", "blue"), ("../secret.png", "black")):
        Image.new("RGB", (8, 6), colour).save(folder / name)
    return folder


def write(folder, *lines, name: str = "train.jsonl") -> str:
    file = folder / name
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(file)


@pytest.fixture
def read(registries):
    """Open ``source`` as a run does."""

    def read(source, split: str = "train", **options):
        part = Part.of(registries.datasets, "data.train.0", "jsonl", {"source": str(source), **options}).resolved()
        return open_dataset(part, split) if split == "train" else open_benchmark(part)

    return read


def refusal(read, source, split: str = "train") -> list[str]:
    with pytest.raises((ConfigError, DataError)) as caught:
        read(source, split)
    return str(caught.value).splitlines()


def test_a_line_is_a_conversation_about_its_pictures(read, folder):
    turns = [{"user": "Is <image> lighter than <image>?", "assistant": "Yes."}, {"user": "Sure?", "assistant": "Yes."}]
    lines = [ASKED, {"turns": turns, "images": ["red.png", "deep/blue.png"], "id": "pair", "category": "two"}]
    dataset = read(write(folder, *lines, {"turns": turns[1:]}))
    first, pair, words = (dataset[i] for i in range(3))
    assert first.turns == [Turn("What colour?", "Red.")]
    assert pair.turns == [Turn(**turn) for turn in turns]
    assert [open_image(image).getpixel((0, 0)) for image in pair.images] == [(255, 0, 0), (0, 0, 255)]
    assert (pair.id, pair.category, first.category, words.images) == ("pair", "two", None, [])
    assert [dataset.id(i) for i in range(3)] == ["train.jsonl:1", "pair", "train.jsonl:3"]


def test_an_id_does_not_depend_on_the_folder(read, folder, tmp_path):
    file = write(folder, ASKED)
    before = read(file).id(0)
    folder.rename(tmp_path / "moved")
    assert read(tmp_path / "moved").id(0) == before


def test_a_folder_of_pictures_with_captions(read, folder):
    captions = [{"file_name": "red.png", "text": "All red."}, {"file_name": "deep/blue.png", "text": "Blue."}]
    write(folder, *captions, name="metadata.jsonl")
    dataset = read(folder)
    assert [dataset[i].turns for i in range(2)] == [
        [Turn("Describe the picture.", "All red.")],
        [Turn("Describe the picture.", "Blue.")],
    ]
    assert open_image(dataset[1].images[0]).getpixel((0, 0)) == (0, 0, 255)
    assert read(folder, caption_prompt="Say it.")[0].turns == [Turn("Say it.", "All red.")]


def test_captions_are_what_the_datasets_library_reads(read, folder):
    """The same folder as Hugging Face's ``imagefolder``."""
    import datasets

    captions = [{"file_name": "deep/blue.png", "text": "Blue."}, {"file_name": "red.png", "text": "All red."}]
    write(folder, *captions, name="metadata.jsonl")
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(folder.parent / "cache"))
    theirs = {(row["text"], row["image"].convert("RGB").getpixel((0, 0))) for row in rows}
    samples = [read(folder)[i] for i in range(2)]
    ours = {(sample.turns[0].assistant, open_image(sample.images[0]).getpixel((0, 0))) for sample in samples}
    assert ours == theirs


def test_a_character_of_two_halves_is_read(read, folder):
    line = {"turns": [{"user": "\N{GRINNING FACE}", "assistant": "a"}]}
    assert "\\ud83d" in json.dumps(line)
    assert read(write(folder, line))[0].turns[0].user == "\N{GRINNING FACE}"


def test_empty_lines_are_none_and_numbers_stay(read, folder):
    assert [read(write(folder, "", ASKED, "  ", ASKED)).id(i) for i in range(2)] == ["train.jsonl:2", "train.jsonl:4"]


def test_text_of_any_language_is_read(read, folder):
    line = {"turns": [{"user": "¿Qué?", "assistant": "日本語 🙂"}]}
    (folder / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(line, ensure_ascii=False).encode())
    assert read(folder)[0].turns == [Turn("¿Qué?", "日本語 🙂")]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{oops", ["line 2 is not JSON: Expecting property name enclosed in double quotes at column 2"]),
        ("[" * 100_000, ["line 2 cannot be read: a number is too long, or brackets stand too deep"]),
        ("9" * 5000, ["line 2 cannot be read: a number is too long, or brackets stand too deep"]),
        ([1], ["line 2=[1]: input should be a mapping of keys to values"]),
        (
            {"file": "red.png", "text": "Red."},
            [
                'line 2 has neither turns nor file_name: write {"images": ["a.jpg"], "turns": [{"user": "Who is '
                'this?", "assistant": "Tom."}]} or {"file_name": "a.jpg", "text": "Tom sleeps."}'
            ],
        ),
        (
            {**ASKED, "image": "red.png"},
            ["line 2: unknown option 'image'. Did you mean 'images'?", "  Known here: category, id, images, turns"],
        ),
        (
            {**ASKED, "images": "red.png"},
            [
                "line 2.images='red.png': input should be a valid list",
                "  images: The pictures that it is about: paths relative to the file's folder.",
            ],
        ),
        (
            {"turns": [{"user": "a", "assistant": " "}]},
            ["line 2.turns.0.assistant: there are no words, so there is nothing to learn"],
        ),
        (
            {"file_name": "red.png"},
            ["line 2.text is missing", "  text: What it shows."],
        ),
        (
            {**ASKED, "images": ["red.png", "gone.png"]},
            ["line 2.images.1='gone.png': there is no such file in '{folder}'"],
        ),
        ({**ASKED, "images": ["deep"]}, ["line 2.images.0='deep': there is no such file in '{folder}'"]),
        ({**ASKED, "id": "one"}, ["line 2: the id 'one' stands on an earlier line, too"]),
        *(
            (line, [f"line 2 holds \\{half}, half of a character: write both halves, or the character"])
            for half, line in (
                ("ud800", {"turns": [{"user": "x \ud800 y", "assistant": "a"}]}),
                ("udc9a", {**ASKED, "id": "\udc9a"}),
                ("ud800", {**ASKED, "images": ["\ud800.png"]}),
            )
        ),
        *(
            (
                {"turns": [{"user": user, "assistant": "a"}] * 2, "images": ["red.png"] * images},
                [
                    f"line 2: the user's words have {marks} <image>, but there are {images} pictures; "
                    "write one <image> for each picture, or none and all come first"
                ],
            )
            for user, marks, images in (("<image>?", 2, 1), ("<image>", 2, 3), ("<image><image>", 4, 0))
        ),
        ({**ASKED, "images": ["a\0b"]}, ["line 2.images.0='a\\x00b' is no path: embedded null byte"]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_line_that_is_wrong_is_told_by_its_number(read, folder, line, told):
    file = write(folder, {**ASKED, "id": "one"}, line)
    first, *lines = refusal(read, file)
    assert first == f"data.train.0: source: {file!r} is not as it should be:"
    assert lines == [f"  {text}".replace("{folder}", str(folder)) for text in told]


@pytest.mark.parametrize(
    "name", ["../secret.png", "deep/../../secret.png", "{folder}/../secret.png", "link.png", "out/secret.png"]
)
def test_a_picture_outside_of_the_data_folder_is_refused(read, folder, name):
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "out").symlink_to(folder.parent)
    name = name.replace("{folder}", str(folder))
    for line, place in (({**ASKED, "images": [name]}, "images.0"), ({"file_name": name, "text": "a"}, "file_name")):
        file = write(folder, line)
        assert refusal(read, file)[1:] == [
            f"  line 1.{place}={name!r} leads out of the data folder: put the picture into {str(folder)!r}"
        ]


def test_links_within_the_folder_and_to_the_folder_are_fine(read, folder):
    (folder / "link.png").symlink_to("deep/blue.png")
    (folder.parent / "data-link").symlink_to(folder)
    write(folder, {**ASKED, "images": ["link.png", str(folder / "red.png")]})
    assert [open_image(image).getpixel((0, 0)) for image in read(folder.parent / "data-link")[0].images] == [
        (0, 0, 255),
        (255, 0, 0),
    ]


def test_of_many_wrong_lines_the_first_are_told_and_the_rest_counted(read, folder):
    told = refusal(read, write(folder, *["no"] * 9))
    assert [line.split(" is ")[0] for line in told[1:-1]] == [f"  line {n}" for n in range(1, 6)]
    assert told[-1] == "  and 4 more lines"


def test_a_file_without_a_line_is_refused(read, folder):
    file = write(folder, "", "  ")
    assert refusal(read, file) == [f"data.train.0: source: {file!r} has no line"]


def test_a_file_that_is_no_text_is_refused(read, folder):
    told = refusal(read, folder / "red.png")
    assert told == [f"data.train.0: source: {str(folder / 'red.png')!r} is not text in UTF-8 (invalid start byte)"]


def test_a_source_that_is_not_there_says_where_it_was_looked_for(read, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert refusal(read, "train.json") == [
        f"data.train.0: source: there is no file and no folder 'train.json' (looked in {folder})"
    ]
    assert refusal(read, folder) == [
        f"data.train.0: source: the folder {str(folder)!r} has no train.jsonl and no metadata.jsonl, {LOOKS}"
    ]


def test_a_folder_is_a_benchmark_if_it_has_questions(read, folder):
    write(folder, ASKED)
    assert refusal(read, folder, "test") == [
        f"data.train.0: source: the folder {str(folder)!r} has no test.jsonl, {LOOKS}"
    ]
    write(folder, {**ASKED, "category": "colours"}, name="test.jsonl")
    benchmark = read(folder, "test", max_new_tokens=7)
    sample = benchmark[0]
    assert (benchmark.prompt(sample), benchmark.answer(sample), benchmark.max_new_tokens) == ("What colour?", "Red.", 7)
    assert [benchmark.score(said, sample) for said in ("red", "Red.", "blue", "")] == [1, 1, 0, 0]


def test_a_file_is_no_benchmark(read, folder):
    file = write(folder, ASKED)
    assert refusal(read, file, "test") == [
        f"data.train.0: source: {file!r} is a file, and trained on; for a benchmark name a folder with test.jsonl"
    ]


def test_a_question_of_a_benchmark_has_one_turn(read, folder):
    file = write(folder, {"turns": ASKED["turns"] * 2}, name="test.jsonl")
    assert refusal(read, folder, "test") == [
        f"data.train.0: source: {file!r} is not as it should be:",
        "  line 1: a question of a benchmark has one turn, not 2",
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_on_ones_own_pictures(folder, tmp_path, workers):
    write(folder, *[ASKED] * 7, {"file_name": "deep/blue.png", "text": "Blue."})
    write(folder, ASKED, name="test.jsonl")
    own = f"{{name: jsonl, source: {folder}}}"
    chosen = tiny_experiment(
        f"data.train=[{own}]", f"benchmarks=[{own}]", f"data.workers={workers}", "training.epochs=2"
    )
    summary = train(chosen, tmp_path / "run")
    assert (summary["samples"], summary["skipped"]) == (16, {})
    assert summary["benchmarks"]["jsonl"]["questions"] == 1


def test_what_is_said_of_ones_own_pictures_is_true(tmp_path, monkeypatch):
    """From an empty folder to a trained model, in the three steps that README.md names."""
    assert len([line for line in OWN_PICTURES.splitlines() if line]) <= 15
    monkeypatch.chdir(tmp_path)
    pictures = tmp_path / "my_pictures"
    pictures.mkdir()
    Image.new("RGB", (40, 30), "orange").save(pictures / "tom.jpg")
    (pictures / "train.jsonl").write_text(f"{LINE}\n{CAPTION}\n")
    (pictures / "test.jsonl").write_text(f"{LINE}\n")
    (tmp_path / "tom.yaml").write_text(EXPERIMENT.replace("quickstart.yaml", str(QUICKSTART)))
    summary = train(load_experiment("tom.yaml", ["training.steps=25", "training.samples_per_step=2", "device=cpu"]))
    assert summary["skipped"] == {}
    assert summary["benchmarks"]["jsonl"]["accuracy"] == 1  # one question, which it has learnt by heart
    model = VisionLanguageModel.from_pretrained(tmp_path / "runs/tom/latest/model")
    assert model.generate("Who is this?", [pictures / "tom.jpg"]) == "Tom."
