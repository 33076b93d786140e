"""Experiments that come with nanovlm are found by name, from any folder."""

import shutil
from pathlib import Path

import pytest
from command import nanovlm

from nanovlm import ConfigError, load_experiment
from nanovlm.lab import load_ablation
from nanovlm.shipped import find_experiment, shipped_experiments, shipped_folders

FOLDER = Path(__file__).parents[1] / "experiments"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_of(name) -> str:
    with pytest.raises(ConfigError) as caught:
        find_experiment(name)
    return str(caught.value)


def test_every_file_of_the_folder_has_a_name():
    shipped = shipped_experiments()
    assert {file.resolve() for file in shipped.values()} == {file.resolve() for file in FOLDER.rglob("*.yaml")}
    assert {"quickstart", "baseline", "pixel_shuffle", "freezing"} <= shipped.keys()
    assert all(find_experiment(name) == file for name, file in shipped.items())


@pytest.mark.parametrize("name", ["pixel_shuffle", "ablations/pixel_shuffle"])
def test_one_in_a_folder_goes_by_either_name(name):
    assert find_experiment(name).resolve() == FOLDER / "ablations" / "pixel_shuffle.yaml"


def test_of_two_alike_the_one_that_takes_several_runs_is_meant_where_only_that_can_be(elsewhere, monkeypatch):
    run = f"extends: {FOLDER / 'quickstart.yaml'}\n"
    question = "ablate: {axes: {projector.factor: [1, 2]}, baseline: {projector.factor: 1}}\n"
    texts = {"same.yaml": run, "ablations/same.yaml": run + question}
    for path, text in texts.items():
        file = elsewhere / "a" / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr("nanovlm.shipped.shipped_folders", lambda: [elsewhere / "a"])
    assert load_experiment("same").name == "same"
    assert [variant.name for variant in load_ablation("same").variants] == ["factor=1", "factor=2"]


def test_of_two_alike_the_outer_one_has_the_short_name(elsewhere, monkeypatch):
    for file in (elsewhere / "a" / "same.yaml", elsewhere / "a" / "ablations" / "same.yaml"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    monkeypatch.setattr("nanovlm.shipped.shipped_folders", lambda: [elsewhere / "a"])
    assert shipped_experiments() == {
        "same": elsewhere / "a" / "same.yaml",
        "ablations/same": elsewhere / "a" / "ablations" / "same.yaml",
    }
    assert find_experiment("ablations/same") == elsewhere / "a" / "ablations" / "same.yaml"


def test_an_experiment_is_loaded_by_name_and_called_by_it():
    experiment = load_experiment("quickstart", ["training.steps=7"])
    assert (experiment.name, experiment.training.steps) == ("quickstart", 7)
    assert experiment == load_experiment(FOLDER / "quickstart.yaml", ["training.steps=7"])
    assert load_ablation("pixel_shuffle") == load_ablation(FOLDER / "ablations" / "pixel_shuffle.yaml")


def test_a_file_that_is_there_comes_first(elsewhere):
    shutil.copy(FOLDER / "baseline.yaml", elsewhere / "quickstart")
    assert load_experiment("quickstart").vision_encoder.options == load_experiment("baseline").vision_encoder.options


def test_a_folder_of_that_name_is_no_experiment(elsewhere):
    (elsewhere / "quickstart").mkdir()
    (elsewhere / "other").mkdir()
    assert find_experiment("quickstart").resolve() == FOLDER / "quickstart.yaml"
    with pytest.raises(ConfigError, match="other: cannot be read"):
        load_experiment("other")


def test_a_file_extends_one_by_name(elsewhere):
    (elsewhere / "own.yaml").write_text("extends: quickstart\nseed: 3")
    assert load_experiment("own.yaml") == load_experiment("quickstart", ["seed=3", "name=own"])


def test_a_file_beside_it_is_extended_first(elsewhere):
    (elsewhere / "quickstart").write_text("extends: baseline\nseed: 5")
    (elsewhere / "own.yaml").write_text("extends: quickstart")
    assert load_experiment("own.yaml") == load_experiment("baseline", ["seed=5", "name=own"])


def test_an_unknown_name_says_what_is_known_and_where_it_was_looked_for(elsewhere):
    first, known, looked = error_of("quickstrat").splitlines()
    assert first == "unknown experiment 'quickstrat'. Did you mean 'quickstart'?"
    assert known.startswith("  Known here: baseline, dinov2_smollm2, ")
    assert known.endswith(", or the path of a YAML file")
    assert looked == f"  Looked in {elsewhere}, {', '.join(map(str, shipped_folders()))}"


def test_a_name_without_the_files_ending_finds_the_file(elsewhere):
    (elsewhere / "tom.yaml").touch()
    assert "Did you mean 'tom.yaml'?" in error_of("tom")
    assert "Did you mean" not in error_of("zzz")


def test_one_in_the_folder_of_experiments_is_proposed_by_its_path(elsewhere):
    (elsewhere / "experiments" / "ablations").mkdir(parents=True)
    for name in ("mine", "ablations/other"):
        (elsewhere / "experiments" / f"{name}.yaml").touch()
    assert "unknown experiment 'mine'. Did you mean 'experiments/mine.yaml'?" in error_of("mine")
    assert "Did you mean 'experiments/ablations/other.yaml'?" in error_of("other")
    (elsewhere / "mine.yaml").touch()
    assert "Did you mean 'mine.yaml'?" in error_of("mine")


def test_an_unknown_name_that_is_extended_says_by_whom(elsewhere):
    (elsewhere / "own.yaml").write_text("extends: quickstrat")
    with pytest.raises(ConfigError) as caught:
        load_experiment("own.yaml")
    assert str(caught.value).startswith(
        "own.yaml: extends='quickstrat', relative to this file: unknown experiment 'quickstrat'. "
        "Did you mean 'quickstart'?"
    )


def test_what_was_meant_is_spelled_as_it_is_to_be_written(elsewhere):
    """Relative to the file that extends it, as the name is."""
    (elsewhere / "a").mkdir()
    (elsewhere / "a" / "own.yaml").write_text("extends: tom")
    (elsewhere / "a" / "tom.yaml").touch()
    with pytest.raises(ConfigError, match=r"Did you mean 'tom\.yaml'\?"):
        load_experiment("a/own.yaml")
    assert "Did you mean 'a/tom.yaml'?" in error_of("a/tom")


def test_a_path_that_is_not_there_names_the_shipped_one(elsewhere):
    assert error_of("experiments/quickstart.yaml") == (
        f"experiments/quickstart.yaml: there is no such file (looked in {elsewhere / 'experiments'}); "
        "the one that comes with nanovlm is called by its name, quickstart"
    )
    assert error_of("nothing.yaml") == f"nothing.yaml: there is no such file (looked in {elsewhere})"


def test_a_path_is_shown_without_detours(elsewhere):
    (elsewhere / "a").mkdir()
    (elsewhere / "base.yaml").touch()
    assert find_experiment("../base.yaml", elsewhere / "a") == elsewhere / "base.yaml"


def test_a_link_is_followed_as_the_system_does(elsewhere):
    (elsewhere / "far" / "away").mkdir(parents=True)
    (elsewhere / "far" / "base.yaml").touch()
    (elsewhere / "link").symlink_to(elsewhere / "far" / "away")
    (elsewhere / "base.yaml").touch()
    assert find_experiment("../base.yaml", elsewhere / "link").samefile(elsewhere / "far" / "base.yaml")


def test_the_commands_take_names():
    assert "quickstart" in nanovlm("plan", "quickstart").out
    assert "the plan" in nanovlm("ablate", "pixel_shuffle", "--plan").out
    done = nanovlm("train", "quickstrat")
    assert (done.status, done.err.splitlines()[0]) == (
        2,
        "nanovlm: unknown experiment 'quickstrat'. Did you mean 'quickstart'?",
    )
