import json
import shutil
import subprocess

import pytest
from finished import FAULTY
from PIL import Image
from tiny import tiny_experiment

from nanovlm import ConfigError, Experiment, VisionLanguageModel, train
from nanovlm.experiment import Data, Training
from nanovlm.training import run as run_module
from nanovlm.training.run import ROOT, _git_state, source_hash
from nanovlm.yaml_reader import read_yaml

FILES = {
    "experiment.yaml", "provenance.json", "metrics.jsonl", "summary.json", "model/config.json",
    "model/model.safetensors", "model/tokenizer.json", "evaluation/shapes/3.jsonl", "evaluation/shapes/3.png",
}  # fmt: skip


def files_of(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_everything_is_in_the_run_folder(run):
    finished = run("data.validation.share=0.2")
    found = files_of(finished.folder)
    assert found >= FILES | {"model-best/model.safetensors"}
    assert not [name for name in found if ".part" in name]


def test_the_experiment_is_written_with_every_option(run, registries):
    written = read_yaml(run("trackers=[console]").folder / "experiment.yaml")
    named = [
        (registries.vision_encoders, written["vision_encoder"]),
        (registries.projectors, written["projector"]),
        (registries.language_decoders, written["language_decoder"]),
        (registries.datasets, written["data"]["train"][0]),
        (registries.datasets, written["benchmarks"][0]),
        (registries.trackers, written["trackers"][0]),
    ]
    for registry, options in named:
        assert options.keys() >= registry.find(options["name"]).cls.Config.model_fields.keys()
    assert written.keys() == Experiment.model_fields.keys()
    assert written["training"].keys() == Training.model_fields.keys()
    assert written["data"].keys() == Data.model_fields.keys()


def test_the_summary_says_how_good_and_how_fast(run):
    summary = run().summary
    shapes = summary["benchmarks"]["shapes"]
    low, high = shapes["ci95"]
    assert 0 <= low <= shapes["accuracy"] <= high <= 1
    assert set(shapes["controls"]) == {"shuffled", "no_image"}
    assert (summary["steps"], summary["samples"], summary["seed"], summary["device"]) == (3, 24, 0, "cpu")
    for key in ("samples_per_second", "tokens_per_second", "peak_memory_bytes", "wall_seconds"):
        assert summary[key] > 0
    seconds = summary["samples"] / summary["samples_per_second"]
    assert summary["tokens"] / summary["tokens_per_second"] == pytest.approx(seconds, rel=1e-2)
    assert seconds < summary["wall_seconds"]  # evaluations are not counted as training


def test_there_is_one_line_for_each_question(run):
    finished = run()
    lines = [json.loads(line) for line in (finished.folder / "evaluation/shapes/3.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"shapes-0-test-{i}" for i in range(8)]
    for line in lines:
        assert line["question"].endswith("?")
        assert line["answer"]
        assert line["score"] == float(line["prediction"].strip().rstrip(".").casefold() == line["answer"])
    accuracy = sum(line["score"] for line in lines) / len(lines)
    assert finished.summary["benchmarks"]["shapes"]["accuracy"] == accuracy
    assert Image.open(finished.folder / "evaluation/shapes/3.png").width > 100


def test_runs_stand_side_by_side_and_latest_is_the_newest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "20260102-030405")  # within one second
    folders = [train(tiny_experiment("name=mine", "seed=3", "training.steps=1"))["run"] for _ in range(3)]
    assert folders == [f"runs/mine/20260102-030405-s3{suffix}" for suffix in ("", "-2", "-3")]
    latest = tmp_path / "runs" / "mine" / "latest"
    assert latest.is_symlink()
    assert latest.resolve() == (tmp_path / folders[-1]).resolve()
    assert sorted(path.name for path in latest.parent.iterdir()) == [
        "20260102-030405-s3", "20260102-030405-s3-2", "20260102-030405-s3-3", "latest",
    ]  # fmt: skip


def test_a_run_folder_can_be_moved(run, tmp_path):
    finished = run()
    shutil.move(finished.folder, tmp_path / "elsewhere")
    model = VisionLanguageModel.from_pretrained(tmp_path / "elsewhere" / "model")
    assert isinstance(model.generate("What?", max_new_tokens=2), str)


def test_a_folder_with_something_in_it_is_not_touched(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="the folder is not empty; name a new one, or remove it"):
        train(tiny_experiment(), tmp_path)
    assert files_of(tmp_path) == {"precious.txt"}


def test_a_run_is_not_begun_in_the_folder_of_another(run):
    folder = run().folder
    with pytest.raises(ConfigError, match=r"it holds a run; go on with that by --resume, or name a new one"):
        train(tiny_experiment(), folder)


def test_an_experiment_that_cannot_work_leaves_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="factor=3"):
        train(tiny_experiment("projector.factor=3"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"training\.tokens_per_row=10: the longest sample takes 79 text"):
        train(tiny_experiment("training.tokens_per_row=10"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_provenance_names_what_the_run_was_made_of(run, faulty):
    faults = faulty(size=8, broken=[])
    finished = run(faults["override"], plugin_files=faults["plugin_files"])
    provenance = finished.provenance()
    assert {"python", "torch", "nanovlm"} <= set(provenance["versions"])
    plugins = {plugin["module"]: plugin for plugin in provenance["plugins"]}
    names = ("shapes", "siglip", "pixel_shuffle", "smollm2")
    assert set(plugins) == {"faulty_plugin", *(f"nanovlm_plugins.{name}" for name in names)}
    assert all(len(plugin["sha256"]) == 64 for plugin in plugins.values())
    assert plugins["faulty_plugin"]["used_for"] == ["data.train.0"]
    assert {place for plugin in plugins.values() for place in plugin["used_for"]} > {"projector", "benchmarks.0"}
    assert len(provenance["source"]) == len(provenance["data"]) == len(provenance["data_order"]) == 64
    assert set(provenance["initial_weights"]) == {"vision_encoder", "projector", "language_decoder"}
    assert (finished.folder / FAULTY.name).read_text() == FAULTY.read_text()


def test_two_plugin_files_of_one_name_are_both_kept(run, faulty, tmp_path):
    faults = faulty(size=8, broken=[])
    other = tmp_path / "other" / FAULTY.name
    other.parent.mkdir()
    other.write_text(FAULTY.read_text().replace('"faulty"', '"faulty_too"'))
    finished = run(faults["override"], plugin_files=[*faults["plugin_files"], str(other)])
    assert (finished.folder / "faulty_plugin.py").read_text() == FAULTY.read_text()
    assert (finished.folder / "faulty_plugin-2.py").read_text() == other.read_text()


def test_a_file_that_was_added_is_a_change_of_the_code(tmp_path):
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    assert _git_state(tmp_path) == {}
    for folder in ("nanovlm", "plugins", "runs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("a = 1")
    git("init", "-q")
    git("add", "nanovlm", "plugins")
    git("commit", "-qm", "all")
    assert _git_state(tmp_path)["changed"] is False
    (tmp_path / "plugins" / "two_layer.py").write_text("b = 2")
    assert _git_state(tmp_path)["changed"] is True


def test_the_source_hash_tells_every_edit_apart(tmp_path):
    """Without git, and of files that git does not know yet."""
    (tmp_path / "below").mkdir()
    (tmp_path / "a.py").write_text("a = 1")
    hashes = [source_hash(tmp_path), source_hash(tmp_path)]
    (tmp_path / "notes.txt").write_text("no code")
    hashes.append(source_hash(tmp_path))
    assert len(set(hashes)) == 1
    (tmp_path / "a.py").write_text("a = 2")
    hashes.append(source_hash(tmp_path))
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    hashes.append(source_hash(tmp_path))
    (tmp_path / "below" / "c.py").write_text("")
    hashes.append(source_hash(tmp_path))
    assert len(set(hashes)) == 4


def test_this_checkout_is_the_one_whose_state_is_recorded():
    assert (ROOT / "nanovlm" / "training" / "run.py").samefile(run_module.__file__)


def test_what_stands_in_the_way_of_a_run_folder_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "file").write_text("mine")
    (tmp_path / "runs" / "folder" / "latest").mkdir(parents=True)
    for name in ("file", "folder", "x" * 300):
        with pytest.raises(ConfigError, match=rf"^runs/{name}: no run folder can be made there \(.*\); move"):
            train(tiny_experiment(f"name={name}"))
    assert [path.name for path in (tmp_path / "runs" / "folder").iterdir()] == ["latest"]
