"""Runs of one seed are paired, or what differs is named."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import tiny_experiment

from nanovlm import load_plugins, train
from nanovlm.blueprint import ROLES, Recipe
from nanovlm.lab.diff import RECORDED
from nanovlm.lab.pairing import notes, unpaired
from nanovlm.lab.results import Result
from nanovlm.training import run as run_module
from nanovlm.training.run import Run
from nanovlm.yaml_reader import dump_yaml, parse_yaml

SHARE = "data.validation.share=0.2"
GIT = {"commit": "decade" * 7, "changed": False}


@pytest.fixture(autouse=True, scope="module")
def _code_that_stands_still():
    """Whoever edits a file of nanovlm while these tests run must not be told of it here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "_git_state", lambda: GIT)
        patch.setattr(run_module, "source_hash", lambda: "0" * 64)
        yield


def finished(folder: Path, *overrides: str, plugin_files: tuple[str, ...] = ()) -> Result:
    train(tiny_experiment(SHARE, *overrides), folder, plugin_files=plugin_files)
    return Result.open(folder)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> dict[str, list[Result]]:
    """Three factors, two seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    return {
        f"factor={factor}": [
            finished(folder / f"{factor}-{seed}", f"projector.factor={factor}", f"seed={seed}") for seed in (0, 1)
        ]
        for factor in (2, 1, 4)
    }


@pytest.fixture
def base(sweep) -> Result:
    return sweep["factor=2"][0]


@pytest.fixture
def against(base, tmp_path):
    """``against(*overrides)``: what ``unpaired`` and ``notes`` say of such a run against the baseline."""

    def against(*overrides: str, **options: Any) -> tuple[list[str], list[str]]:
        return told({"baseline": [base], "other": [finished(tmp_path / "other", *overrides, **options)]})

    return against


def told(variants: dict[str, list[Result]], baseline: str = "baseline") -> tuple[list[str], list[str]]:
    return unpaired(variants, baseline), notes(variants, baseline)


def changed(result: Result, *path: Any, to: Any) -> Result:
    """The same run with another record of itself."""
    provenance: Any = deepcopy(result.provenance)
    below = provenance
    for key in path[:-1]:
        below = below[key]
    below[path[-1]] = to
    return replace(result, provenance=provenance)


def without(result: Result, *keys: str) -> Result:
    return replace(result, provenance={key: value for key, value in result.provenance.items() if key not in keys})


def test_a_sweep_over_one_setting_is_paired(sweep):
    assert told(sweep, "factor=2") == ([], [])
    assert told(sweep, "factor=4") == ([], [])


@pytest.mark.parametrize(
    "override",
    [
        "projector=mlp",
        "vision_encoder.hidden_size=32",
        "language_decoder.num_hidden_layers=1",
        "training.learning_rate.vision_encoder=0",
        "training.tokens_per_row=120",
        "training.precision=fp32",
        "benchmarks=[]",
        "data.workers=1",
    ],
)
def test_what_was_chosen_is_no_finding(against, override):
    assert against(override) == ([], [])


def test_other_training_data_are_named_with_the_settings_that_chose_them(against):
    setting = "data.train.0.train_size is 63 against 64"
    assert against("data.train.0.train_size=63") == (
        [f"other, seed 0: the training data differ, as the experiments ask: {setting}"],
        [],
    )


def test_many_settings_are_named_in_part(against):
    (sentence,), _ = against("data.train=[{name: jsonl, source: tiny, weight: 5}]", "data.validation.share=0")
    assert "data.train.0.name is jsonl against shapes, data.train.0.weight is 5.0 against 1.0" in sentence
    assert sentence.endswith(" more")


def test_another_order_of_the_same_data_is_named(against):
    (sentence,), _ = against("data.train.0.weight=0.5")
    assert sentence == (
        "other, seed 0: the training data are the same, but come in another order, as the experiments ask: "
        "data.train.0.weight is 0.5 against 1.0"
    )


class Pictures:
    """A folder with questions about pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "train.jsonl"
        folder.mkdir()
        lines = []
        for i in range(12):
            Image.new("L", (8, 8), 20 * i).save(folder / f"{i}.png")
            turns = [{"user": "How bright?", "assistant": f"{20 * i}"}]
            lines.append(json.dumps({"images": [f"{i}.png"], "turns": turns, "id": f"picture {i}"}))
        self.write(lines)

    def lines(self) -> list[str]:
        return self.file.read_text().splitlines()

    def write(self, lines: list[str]) -> None:
        self.file.write_text("\n".join(lines))


def edit_an_answer(pictures: Pictures) -> None:
    first, *rest = pictures.lines()
    pictures.write([first.replace('"assistant": "0"', '"assistant": "dark"'), *rest])


def edit_a_picture(pictures: Pictures) -> None:
    Image.new("L", (8, 8), 1).save(pictures.folder / "0.png")


def remove_a_row(pictures: Pictures) -> None:
    pictures.write(pictures.lines()[:-1])


@pytest.mark.parametrize("edit", [edit_an_answer, edit_a_picture, remove_a_row])
def test_data_that_were_edited_between_two_runs_are_named(tmp_path, edit):
    pictures = Pictures(tmp_path / "pictures")
    data = json.dumps([{"name": "jsonl", "source": str(pictures.folder)}])
    runs = {"baseline": [finished(tmp_path / "first", f"data.train={data}")]}
    edit(pictures)
    runs["other"] = [finished(tmp_path / "second", f"data.train={data}", "projector.factor=4")]
    assert unpaired(runs, "baseline") == [
        "other, seed 0: the training data differ, though the experiments ask for the same (other samples, or other "
        "turns and pictures under the same ids)"
    ]


PLUGIN = """
from nanovlm import hookimpl
from nanovlm_plugins.pixel_shuffle import PixelShuffle

class Halved(PixelShuffle):
    def forward(self, patches):
        return super().forward(patches) / 2

@hookimpl
def register_projectors(register):
    register("halved", Halved)
"""


def test_a_plugin_that_was_edited_between_two_runs_is_named(tmp_path):
    file = tmp_path / "halved.py"
    runs = {}
    for name, source in (("baseline", PLUGIN), ("other", PLUGIN.replace("/ 2", "/ 3"))):
        file.write_text(source)
        runs[name] = [finished(tmp_path / name, "projector={name: halved, factor: 2}", plugin_files=(str(file),))]
    (sentence,) = unpaired(runs, "baseline")
    hashes = [plugin["sha256"] for name in ("other", "baseline") for plugin in plugins_named("halved", runs[name][0])]
    first, second = (digest[:12] for digest in hashes)
    assert sentence == (
        f"other, seed 0: the plugin halved differs: halved, sha256 {first} against halved, sha256 {second}"
    )


def plugins_named(module: str, result: Result) -> list[dict[str, Any]]:
    return [plugin for plugin in result.provenance["plugins"] if plugin["module"] == module]


def test_a_component_of_one_name_from_another_plugin_is_named(base):
    place = next(i for i, plugin in enumerate(base.provenance["plugins"]) if plugin["used_for"] == ["projector"])
    other = changed(base, "plugins", place, "module", to="elsewhere")
    expected = "the projector comes from another plugin: elsewhere against nanovlm_plugins.pixel_shuffle"
    assert unpaired({"baseline": [base], "other": [other]}, "baseline") == [f"other, seed 0: {expected}"]


def test_another_version_of_a_library_or_of_the_code_is_named(against, base, monkeypatch):
    monkeypatch.setattr(run_module, "version", lambda package: "0.0" if package == "pillow" else "1")
    monkeypatch.setattr(run_module, "_git_state", lambda: {"commit": "c0ffee" * 7, "changed": True})
    monkeypatch.setattr(run_module, "source_hash", lambda: "f" * 64)
    (code, versions), _ = against()
    assert code == (
        "other, seed 0: the code of nanovlm differs, commit c0ffeec0ffee with uncommitted changes against commit "
        "decadedecade"
    )
    assert versions.startswith("other, seed 0: the versions of libraries differ: ")
    assert f"pillow 0.0 against {base.provenance['versions']['pillow']}" in versions
    assert "python" not in versions


def test_a_library_that_only_one_run_had_is_named(base):
    other = changed(base, "versions", "timm", to="9.9")
    lacking = changed(base, "versions", to={k: v for k, v in base.provenance["versions"].items() if k != "timm"})
    assert unpaired({"baseline": [lacking], "other": [other]}, "baseline") == [
        "other, seed 0: the versions of libraries differ: timm 9.9 against (absent)"
    ]


@pytest.mark.parametrize("role", ROLES)
def test_other_initial_weights_of_what_no_setting_touches_are_named(base, role):
    other = changed(base, "initial_weights", role, to="0" * 64)
    assert unpaired({"baseline": [base], "other": [other]}, "baseline") == [
        f"other, seed 0: the initial weights of the {role} differ, though the experiments ask for the same"
    ]


def test_other_initial_weights_of_an_untouched_component_are_named_beside_a_touched_one(sweep):
    other = changed(sweep["factor=4"][0], "initial_weights", "vision_encoder", to="0" * 64)
    assert len(unpaired({"baseline": [sweep["factor=2"][0]], "other": [other]}, "baseline")) == 1


def test_equal_findings_are_one_sentence(sweep):
    torch = sweep["factor=2"][0].provenance["versions"]["torch"]
    others = {
        name: [changed(run, "versions", "torch", to="1.13") if name != "factor=2" else run for run in runs]
        for name, runs in sweep.items()
    }
    others["factor=4"][1] = changed(others["factor=4"][1], "initial_weights", "vision_encoder", to="0" * 64)
    assert unpaired(others, "factor=2") == [
        f"factor=1 and factor=4, seeds 0 and 1: the versions of libraries differ: torch 1.13 against {torch}",
        "factor=4, seed 1: the initial weights of the vision_encoder differ, though the experiments ask for the same",
    ]


def test_a_seed_that_one_side_lacks_is_named(sweep):
    first, second = sweep["factor=2"], sweep["factor=4"]
    assert unpaired({"a": first, "b": second[:1]}, "a") == [
        "b, seed 1: there is no run of it, and the baseline has one"
    ]
    assert unpaired({"a": first[:1], "b": second}, "a") == ["b, seed 1: the baseline has no run of it"]
    assert unpaired({"a": first, "b": second[::-1]}, "a") == []


def test_a_run_without_provenance_is_named(base):
    bare = replace(base, provenance={})
    sentence = "seed 0: its provenance.json is missing or empty, so this cannot be compared"
    assert unpaired({"a": [base], "b": [bare]}, "a") == [f"b, {sentence}"]
    assert unpaired({"a": [bare], "b": [base]}, "a") == [f"a, {sentence}"]


@pytest.mark.parametrize("key", RECORDED)
def test_what_is_missing_or_damaged_in_a_provenance_is_named(base, key):
    sentence = f"b, seed 0: its provenance.json does not hold {key}, so this cannot be compared"
    for damaged in (without(base, key), *(changed(base, key, to=value) for value in (None, 3))):
        assert unpaired({"a": [base], "b": [damaged]}, "a") == [sentence]


def test_whatever_is_recorded_and_differs_is_told(base):
    """A wrong value anywhere in the record, hardware aside, of which the label alone is told."""
    for key in ("data", "data_order", "source"):
        assert told({"baseline": [base], "other": [changed(base, key, to="f" * 64)]})[0], key
    for key in ("versions", "initial_weights"):
        for name in base.provenance[key]:
            assert told({"baseline": [base], "other": [changed(base, key, name, to="0")]})[0], (key, name)
    for i, plugin in enumerate(base.provenance["plugins"]):
        for name in plugin.keys() - {"used_for"}:
            assert told({"baseline": [base], "other": [changed(base, "plugins", i, name, to="0")]})[0], (i, name)


def test_another_length_is_only_told(against):
    assert against("training.steps=4") == (
        [],
        ["other, seed 0: the same samples in the same order, but 32 of them against 24"],
    )


def test_larger_steps_are_only_told(against):
    assert against("training.samples_per_step=12", "training.steps=2") == (
        [],
        ["other, seed 0: the same samples in the same order, but 12 of them a step against 8"],
    )


def test_samples_that_only_one_of_them_skipped_are_named(against):
    (sentence,), _ = against("data.max_text_tokens=40")
    assert sentence.startswith("other, seed 0: the same samples in the same order, but ")
    assert sentence.endswith(" of them were skipped against 0")


def test_other_hardware_is_only_told(base):
    other = changed(base, "hardware", "label", to="one H200")
    other = replace(other, summary=other.summary | {"ranks": 2})
    label = base.provenance["hardware"]["label"]
    assert told({"baseline": [base], "other": [other]}) == (
        [],
        [
            f"other, seed 0: other hardware, so speeds are not comparable: one H200 against {label}",
            "other, seed 0: another number of processes, so speeds are not comparable: 2 against 1",
        ],
    )


def test_another_precision_that_nobody_asked_for_is_named(base):
    other = replace(base, summary=base.summary | {"precision": "bf16"})
    assert unpaired({"baseline": [base], "other": [other]}, "baseline") == [
        "other, seed 0: the precision differs, though the experiments ask for the same: bf16 against fp32"
    ]
    chosen = parse_yaml(dump_yaml(base.experiment), "here")
    chosen["training"]["precision"] = "bf16"
    assert told({"baseline": [base], "other": [replace(other, experiment=chosen)]}) == ([], [])


def with_code(result: Result, source: str, **git: Any) -> Result:
    return changed(changed(result, "git", to=git), "source", to=source)


def test_another_commit_with_the_same_code_is_only_told(base):
    first, second = with_code(base, "s", commit="a" * 40, changed=False), with_code(base, "s", commit="b" * 40)
    assert told({"baseline": [first], "other": [second]}) == (
        [],
        ["other, seed 0: commit bbbbbbbbbbbb against commit aaaaaaaaaaaa, in which the code of nanovlm is the same"],
    )


def test_uncommitted_changes_that_are_not_the_same_are_named(base):
    first, second = (with_code(base, source, commit="a" * 40, changed=True) for source in "st")
    assert unpaired({"baseline": [first], "other": [second]}, "baseline") == [
        "other, seed 0: the code of nanovlm differs, though both are of commit aaaaaaaaaaaa with uncommitted changes"
    ]
    bare = [with_code(base, source) for source in "st"]
    assert unpaired({"baseline": bare[:1], "other": bare[1:]}, "baseline") == [
        "other, seed 0: the code of nanovlm differs, though both are of an unknown commit"
    ]


def test_code_that_differs_is_named_even_where_one_run_recorded_no_commit(base):
    first, second = (with_code(base, source, commit="a" * 40, changed=False) for source in "st")
    found = unpaired({"baseline": [first], "other": [without(second, "git")]}, "baseline")
    assert found == [
        "other, seed 0: its provenance.json does not hold git, so this cannot be compared",
        f"other, seed 0: the code of nanovlm differs, an unknown commit against commit {'a' * 12}",
    ]


@pytest.fixture
def resumed(tmp_path):
    """``resumed(run)``: the same run as if it had been resumed, as its folder then says."""

    def resumed(result: Result, *overrides: str) -> Result:
        shutil.copytree(result.folder, tmp_path / "resumed")
        recipe = Recipe.of(tiny_experiment(SHARE, *overrides), load_plugins())
        Run.open(tmp_path / "resumed").record_resumption(recipe, torch.device("cpu"), step=2)
        return Result.open(tmp_path / "resumed")

    return resumed


def test_a_run_that_was_resumed_with_nothing_changed_is_paired(sweep, resumed):
    other = resumed(sweep["factor=4"][0], "projector.factor=4")
    assert [record["step"] for record in other.provenance["resumed"]] == [2]
    assert told({"baseline": sweep["factor=2"], "other": [other, sweep["factor=4"][1]]}) == ([], [])


def test_versions_and_code_that_changed_on_the_way_are_named(base, resumed, monkeypatch):
    monkeypatch.setattr(run_module, "version", lambda package: "1.0")
    monkeypatch.setattr(run_module, "source_hash", lambda: "f" * 64)
    versions = base.provenance["versions"]
    code, libraries = unpaired({"a": [base], "b": [resumed(base)]}, "a")
    start = "b, seed 0: since it was resumed after step 2: "
    assert code == f"{start}the code of nanovlm differs, though both are of commit decadedecade"
    assert libraries.startswith(f"{start}the versions of libraries differ: nanovlm 1.0 against {versions['nanovlm']}, ")


def test_a_plugin_that_was_edited_on_the_way_is_named_once_for_each_time(base):
    first, second, third = (deepcopy(base.provenance["plugins"]) for _ in range(3))
    second[0]["sha256"], third[0]["sha256"] = "a" * 64, "b" * 64
    records = [
        {"step": step, "plugins": plugins} for step, plugins in ((1, first), (2, second), (3, second), (4, third))
    ]
    other = replace(base, provenance=base.provenance | {"resumed": records})
    name = first[0]["module"]
    sentences = unpaired({"a": [other], "b": [base]}, "a")
    assert [sentence.partition(" differs")[0] for sentence in sentences] == [
        f"a, seed 0: since it was resumed after step {step}: the plugin {name}" for step in (2, 4)
    ]


@pytest.mark.parametrize("damaged", [3, [3], [{}], {}, None])
def test_damaged_records_of_resumptions_stop_nothing(base, damaged):
    other = replace(base, provenance=base.provenance | {"resumed": damaged})
    assert told({"baseline": [base], "other": [other]}) == ([], [])
