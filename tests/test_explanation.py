"""Every setting says where it came from: ``nanovlm plan --explain``."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import nanovlm

from nanovlm import ConfigError, load_experiment
from nanovlm.blueprint import Recipe
from nanovlm.explanation import DEFAULT, explain_experiment
from nanovlm.places import Place
from nanovlm.shipped import shipped_experiments

OWN = """extends: quickstart
projector: mlp
training:
  learning_rate: 1e-3
  schedule: constant
  final_learning_rate: 0.5
data:
  validation: {every: 7}
trackers: []
"""


@pytest.fixture
def own(tmp_path) -> Path:
    file = tmp_path / "own.yaml"
    file.write_text(OWN)
    return file


@pytest.fixture
def places(own, registries):
    def places(*overrides: str) -> dict[str, Place]:
        return {each.key: each.place for each in explain_experiment(own, overrides, registries).settings}

    return places


def test_every_source_is_told_apart(own, places):
    found = places("training.samples=640", "seed=3")
    quickstart = str(shipped_experiments()["quickstart"])
    assert found["projector.name"] == Place(str(own), 2)
    assert found["training.learning_rate.projector"] == found["training.learning_rate.vision_encoder"]
    assert found["training.learning_rate.projector"] == Place(str(own), 4)
    assert found["data.validation.every"] == Place(str(own), 8)
    assert found["vision_encoder.name"].where == quickstart
    assert found["trackers"] == Place(str(own), 9)
    assert found["training.samples"] == Place("override training.samples=640")
    assert found["training.steps"] == found["training.warmup"] == found["benchmarks.0.limit"] == DEFAULT
    assert found["name"] == Place("file name")


def test_what_a_checkpoint_decides_is_called_so(registries):
    explained = explain_experiment("baseline", ["vision_encoder.image_size=224"], registries)
    found = {each.key: each.place for each in explained.settings}
    assert found["vision_encoder.hidden_size"] == Place("checkpoint google/siglip-base-patch16-224")
    assert found["language_decoder.num_hidden_layers"] == Place("checkpoint HuggingFaceTB/SmolLM2-135M")
    assert found["vision_encoder.image_size"].override == "vision_encoder.image_size=224"
    assert found["language_decoder.lora"] == DEFAULT


def test_so_is_what_it_decides_within_an_option(registries):
    found = {each.key: each.place for each in explain_experiment("dinov2_smollm2", (), registries).settings}
    assert found["vision_encoder.architecture.hidden_size"] == Place("checkpoint facebook/dinov2-small")


def test_a_key_may_hold_a_dot(tmp_path, registries):
    file = tmp_path / "dots.yaml"
    train = "data:\n  train:\n  - name: the_cauldron\n    source: tiny\n    weights:\n      v1.5: 2.0\n"
    file.write_text(f"extends: quickstart\n{train}")
    found = {each.key: each.place for each in explain_experiment(file, (), registries).settings}
    assert found["data.train.0.weights.v1.5"] == Place(str(file), 7)


@pytest.mark.parametrize("name", ["quickstart", "baseline", "finevision", "dinov2_smollm2"])
def test_it_holds_the_whole_recipe_and_every_line_is_true(name, registries):
    """The lines that are named say the keys that they are named for."""
    settings = explain_experiment(name, (), registries).settings
    recipe = Recipe.of(load_experiment(name), registries).dump()
    assert {each.key: each.value for each in settings} == flat(recipe)
    assert [each.key for each in settings] == list(flat(recipe))
    from_files = [each for each in settings if each.place.line]
    assert from_files
    for each in from_files:
        line = Path(each.place.where).read_text(encoding="utf-8").splitlines()[each.place.line - 1]
        assert any(word in line for word in each.key.split(".")[-2:]) or str(each.value) in line, each


def flat(tree: Any, above: str = "") -> dict[str, Any]:
    """Plain values, and lists of them, by dotted key."""
    if isinstance(tree, dict) and tree:
        return {key: value for name, below in tree.items() for key, value in flat(below, f"{above}{name}.").items()}
    if isinstance(tree, list) and any(isinstance(entry, dict) for entry in tree):
        return flat(dict(enumerate(tree)), above)
    return {above[:-1]: tree}


def test_what_is_not_read_is_remarked_where_it_was_written(own, registries):
    remarks = {each.key: each.remark for each in explain_experiment(own, (), registries).settings if each.remark}
    assert remarks == {"training.final_learning_rate": "not read: training.schedule is constant"}


def test_the_command_shows_a_setting_a_line(own):
    done = nanovlm("plan", own, "training.samples=640", "--explain")
    assert done.status == 0
    rows = dict(line.rsplit("  ", 1) for line in done.out.splitlines() if "=" in line and "  " in line.strip())
    rows = {setting.rstrip(): place for setting, place in rows.items()}
    assert rows["projector.name=mlp"] == "own.yaml:2"
    assert rows["training.samples=640"] == "override"
    assert rows["training.betas=[0.9, 0.95]"].startswith("quickstart.yaml:")
    assert rows["training.warmup=0.03"] == "default"
    assert f"own.yaml is {own}" in done.out
    assert "  not read: training.schedule is constant" in done.out
    assert "dropped: projector.factor=2 (quickstart.yaml:" in done.out
    assert ") by own.yaml:2\n" in done.out
    assert "dropped: training.steps=1000 (quickstart.yaml:" in done.out
    assert ") by override training.samples=640\n" in done.out


def test_it_is_readable_in_a_narrow_terminal(own, monkeypatch, capsys):
    from rich.console import Console

    from nanovlm.cli.plan import show
    from nanovlm.plugins import load_plugins

    show(explain_experiment(own, (), load_plugins()), Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    settings = [line for line in lines if "  default" in line]
    assert settings
    assert len({line.index("  default") for line in settings if line.rstrip().endswith("  default")}) == 1
    assert max(map(len, settings)) <= 80


def test_two_files_of_one_name_are_shown_with_their_folders(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "own.yaml").write_text("extends: quickstart\nseed: 1")
    (tmp_path / "own.yaml").write_text("extends: a/own.yaml\ndevice: cpu")
    out = nanovlm("plan", tmp_path / "own.yaml", "--explain").out
    assert f"  {tmp_path / 'a' / 'own.yaml'}:2" in out
    assert f"  {tmp_path / 'own.yaml'}:2" in out


def test_json_has_the_same(own):
    content = json.loads(nanovlm("plan", own, "seed=3", "--explain", "--json").out)
    settings = {each["key"]: each for each in content["settings"]}
    assert content["name"] == "own"
    assert settings["projector.name"] == {
        "key": "projector.name", "value": "mlp", "from": "file", "file": str(own), "line": 2,
    }  # fmt: skip
    assert settings["seed"] == {"key": "seed", "value": 3, "from": "override", "override": "seed=3"}
    assert settings["training.warmup"]["from"] == "default"
    assert settings["training.final_learning_rate"]["remark"] == "not read: training.schedule is constant"
    (factor,) = [each for each in content["dropped"] if each["key"] == "projector.factor"]
    assert (factor["value"], factor["by"]) == (2, {"from": "file", "file": str(own), "line": 2})


def test_json_names_the_checkpoint():
    settings = json.loads(nanovlm("plan", "baseline", "--explain", "--json").out)["settings"]
    (size,) = [each for each in settings if each["key"] == "vision_encoder.hidden_size"]
    assert (size["from"], size["weights"]) == ("checkpoint", "google/siglip-base-patch16-224")


def test_what_is_wrong_is_said_as_ever(own, registries):
    with pytest.raises(ConfigError, match="unknown option 'facter'"):
        explain_experiment(own, ["projector.facter=3"], registries)
    done = nanovlm("plan", "pixel_shuffle", "--explain")
    assert (done.status, "start them by `nanovlm ablate pixel_shuffle`" in done.err) == (2, True)
