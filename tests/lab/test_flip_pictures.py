"""Pictures of flipped questions are those that the run was asked about; a report can do without them."""

import base64
import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from compared import comparison, flip
from page import Page
from PIL import Image, ImageChops
from tiny import tiny_experiment

from nanovlm import train
from nanovlm.evaluation.evaluator import read_items
from nanovlm.lab.compare import compare
from nanovlm.lab.comparison import Comparison, Flip
from nanovlm.lab.report.pictures import SIZE, data_uri, thumbnails
from nanovlm.lab.report.writer import write_report
from nanovlm.lab.results import Result

PLUGIN = '''
from nanovlm import Benchmark, ComponentConfig, Sample, Turn, hookimpl


class Files(Benchmark):
    """Pictures in a folder, each asked about twice."""

    class Config(ComponentConfig):
        source: str

    def __init__(self, config, split):
        self.folder = config.source

    def __len__(self):
        return 6

    def id(self, index):
        return str(index // 2)

    def __getitem__(self, index):
        turn = Turn(f"<image>How red, {index % 2}?", str(index))
        return Sample([f"{self.folder}/{index // 2}.png"], [turn], self.id(index), category="red")


@hookimpl
def register_datasets(register):
    register("files", Files)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of a run on a plugin given by path, whose pictures lie in files; and what it needs."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "files.py").write_text(PLUGIN)
    (folder / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (400, 200), (80 * number, 0, 0)).save(folder / "images" / f"{number}.png")
    overrides = f"benchmarks=[{{name: files, source: {folder / 'images'}}}]"
    train(tiny_experiment(overrides), folder / "run", [str(folder / "files.py")])
    (folder / "files.py").unlink()  # the run has a copy
    return folder


def asked(folder: Path) -> tuple[Comparison, list[Flip]]:
    """A comparison whose baseline is this run, and a flip for each of its questions."""
    made = comparison()
    first, *others = made.variants
    run = Result(folder / "run", {"seed": 0}, {}, {}, {})
    items = read_items(folder / "run" / "evaluation" / "files" / "3.jsonl")
    flips = [
        flip(0, "factor=4", 1.0, benchmark="files", id=item.id, question=item.question, answer=item.answer)
        for item in items
    ]
    assert len(flips) == 6
    return replace(made, variants=(replace(first, runs=(run,)), *others)), flips


def opened(uri: str) -> Image.Image:
    kind, _, content = uri.partition(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    return Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")


def test_each_question_has_the_pictures_that_it_was_asked_about(folder):
    made, flips = asked(folder)
    found = thumbnails(made, flips)
    assert not found.notes
    for one in flips:
        (uri,) = found.of(one)
        image = opened(uri)
        assert image.size == (SIZE, SIZE // 2)
        assert abs(image.getpixel((5, 5))[0] - 80 * int(one.id)) < 3


def test_questions_that_the_benchmark_no_longer_has_are_counted(folder):
    made, flips = asked(folder)
    changed = replace(flips[0], question="<image>How blue?")
    found = thumbnails(made, [changed, *flips[1:]])
    assert not found.of(changed) and found.of(flips[1])
    assert found.notes == ["Flipped questions without a picture, as their benchmark no longer has them: 1."]


def test_pictures_that_are_gone_are_counted(folder, tmp_path):
    copied = tmp_path / "copy"
    shutil.copytree(folder / "run", copied / "run")
    experiment = copied / "run" / "experiment.yaml"
    experiment.write_text(experiment.read_text().replace(str(folder / "images"), str(tmp_path / "moved")))
    made, flips = asked(copied)
    found = thumbnails(made, flips)
    assert not any(map(found.of, flips))
    assert found.notes == ["Pictures of flipped questions that cannot be read: 6."]


def test_a_plugin_that_is_gone_leaves_a_report_with_a_note(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run" / "files.py").unlink()
    made, flips = asked(tmp_path)
    (note,) = thumbnails(made, flips).notes
    assert note.startswith("The flipped questions are without pictures, as their benchmark could not be opened: ")
    assert "unknown dataset 'files'" in note


def test_a_plugin_that_fails_leaves_a_report_with_a_note(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    plugin = tmp_path / "run" / "files.py"
    plugin.write_text(plugin.read_text().replace("return 6", "raise RuntimeError('no disk')"))
    made, flips = asked(tmp_path)
    assert "could not be opened: RuntimeError: no disk" in thumbnails(made, flips).notes[0]


def test_of_many_pictures_the_first_ones_are_shown_and_that_is_said(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    plugin = tmp_path / "run" / "files.py"
    plugin.write_text(plugin.read_text().replace('.png"], [turn]', '.png"] * 6, [turn]'))
    made, flips = asked(tmp_path)
    found = thumbnails(made, flips)
    assert len(found.of(flips[0])) == 4
    assert found.notes == ["Of flipped questions with up to 6 pictures the first 4 are shown."]


def test_without_flips_nothing_is_opened():
    assert not thumbnails(comparison(), []).notes


def test_a_small_picture_keeps_its_size_and_its_pixels():
    image = Image.effect_noise((31, 17), 80).convert("RGB")
    again = opened(data_uri(image))
    assert again.size == image.size
    drawn = Image.new("RGB", (32, 32), "white")
    drawn.paste((200, 0, 0), (4, 4, 20, 20))
    assert ImageChops.difference(drawn, opened(data_uri(drawn))).getbbox() is None
    assert drawn.size == (32, 32), "the benchmark's own picture stays as it is"


def test_a_comparison_of_real_runs_becomes_a_report_with_their_pictures(tmp_path):
    groups = {
        f"factor={factor}": [
            Result.open(trained(tmp_path / f"{factor}-{seed}", f"projector.factor={factor}", f"seed={seed}"))
            for seed in (0, 1)
        ]
        for factor in (2, 1)
    }
    compared = compare(groups, "factor=2", "pixel_shuffle")
    flips = tuple(
        Flip(
            "shapes",
            "factor=1",
            item.id,
            item.question,
            item.answer,
            item.category,
            ("a", "a"),
            ("b", "b"),
            (1.0, 1.0),
            1.0,
        )
        for item in groups["factor=2"][0].items["shapes"]
    )
    files = write_report(replace(compared, flips=flips), tmp_path / "report")
    page = Page(files[0].read_text())
    cards = [found for found in page.all("li") if found.get("class") == "card"]
    assert len(cards) == 8 and len([found for found in page.all("img") if "of the question" in found["alt"]]) == 8
    assert {file.name for file in files} >= {"accuracy-shapes.png", "loss-by-samples.png", "loss-by-time.png"}


def trained(folder: Path, *overrides: str) -> Path:
    train(tiny_experiment("data.validation.share=0.2", *overrides), folder)
    return folder
