"""What differs between two runs, and only that."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_experiment

from nanovlm import train
from nanovlm.lab.diff import ABSENT, RECORDED, Change, describe, differences
from nanovlm.lab.results import Result
from nanovlm.training import run as run_module


@pytest.fixture(autouse=True, scope="module")
def _code_that_stands_still():
    """Whoever edits a file of nanovlm while these tests run must not be told of it here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "_git_state", lambda: {"commit": "decade" * 7, "changed": False})
        patch.setattr(run_module, "source_hash", lambda: "0" * 64)
        yield


def finished(folder: Path, *overrides: str) -> Result:
    train(tiny_experiment(*overrides), folder)
    return Result.open(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Result:
    return finished(tmp_path_factory.mktemp("run") / "run")


def provenance(result: Result, **records: Any) -> Result:
    return replace(result, provenance=result.provenance | records)


def test_a_run_does_not_differ_from_itself_nor_from_its_repetition(run, tmp_path):
    for other in (run, finished(tmp_path / "again")):
        assert differences(run, other) == []
    assert describe([]) == "no difference"


def test_another_setting_is_told_with_what_follows_from_it(run, tmp_path):
    other = finished(tmp_path / "other", "projector.factor=4")
    weights = [result.provenance["initial_weights"]["projector"] for result in (run, other)]
    changes = differences(run, other)
    assert changes == [
        Change("experiment", "projector.factor", 2, 4),
        Change("initial_weights", "projector", *weights),
    ]
    assert describe(changes).splitlines() == [
        "experiment",
        "  projector.factor: 2 -> 4",
        "initial weights",
        f"  projector: {weights[0][:12]} -> {weights[1][:12]}",
    ]


def test_another_component_brings_its_own_options_and_its_plugin(run, tmp_path):
    lines = describe(differences(run, finished(tmp_path / "other", "projector=mlp"))).splitlines()
    assert "  projector.name: pixel_shuffle -> mlp" in lines
    assert "  projector.factor: 2 -> (absent)" in lines
    plugins = lines[lines.index("plugins") + 1 : lines.index("plugins") + 3]
    assert [line.split(":")[0].strip() for line in plugins] == ["nanovlm_plugins.pixel_shuffle", "nanovlm_plugins.mlp"]
    assert plugins[0].endswith("-> (absent)")
    assert "(absent) -> nanovlm " in plugins[1]


def test_another_seed_is_another_order_of_the_same_data(run, tmp_path):
    changes = differences(run, finished(tmp_path / "other", "seed=1"))
    assert {change.key for change in changes if change.section == "data"} == {"data_order"}
    assert {change.key for change in changes if change.section == "initial_weights"} == {
        "vision_encoder", "projector", "language_decoder",
    }  # fmt: skip


def test_code_versions_and_hardware_are_told_by_name(run):
    other = provenance(
        run,
        git={"commit": "c0ffee" * 7, "changed": True},
        source="1" * 64,
        versions={**run.provenance["versions"], "pillow": "0.0", "rare": "1.2"},
        hardware={**run.provenance["hardware"], "cpu_cores": 999, "label": "one that says the same"},
    )
    other = replace(other, summary=other.summary | {"ranks": 4})
    assert describe(differences(run, other)).splitlines() == [
        "code",
        "  source: 000000000000 -> 111111111111",
        "  commit: decadedecade -> c0ffeec0ffee",
        "  changed: false -> true",
        "versions",
        f"  pillow: {run.provenance['versions']['pillow']} -> 0.0",
        "  rare: (absent) -> 1.2",
        "hardware",
        f"  cpu_cores: {run.provenance['hardware']['cpu_cores']} -> 999",
        "  ranks: 1 -> 4",
    ]


def test_an_edited_plugin_is_told_by_its_hash_and_version(run):
    plugins = deepcopy(run.provenance["plugins"])
    plugins[0] |= {"sha256": "f" * 64, "version": "9.9"}
    (change,) = differences(run, provenance(run, plugins=plugins))
    assert (change.section, change.key) == ("plugins", plugins[0]["module"])
    assert change.b == "nanovlm 9.9, sha256 ffffffffffff"


def test_two_plugins_of_one_name_are_kept_apart(run):
    twice = [*run.provenance["plugins"], *run.provenance["plugins"]]
    changes = differences(run, provenance(run, plugins=twice))
    assert [change.key for change in changes] == [f"{plugin['module']}-2" for plugin in run.provenance["plugins"]]
    assert {change.a for change in changes} == {ABSENT}


def test_every_setting_is_told_alone(run):
    """Whatever is changed in a resolved experiment is the one difference."""
    for keys in leaves(run.experiment):
        experiment = deepcopy(run.experiment)
        below = experiment
        for key in keys[:-1]:
            below = below[key]
        below[keys[-1]] = "another value"
        (change,) = differences(run, replace(run, experiment=experiment))
        assert (change.section, change.key, change.b) == ("experiment", ".".join(map(str, keys)), "another value")


def leaves(tree: Any) -> list[list[Any]]:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found = [[key, *rest] for key, value in pairs for rest in leaves(value)]
    return found or [[]]


def test_what_no_run_has_a_record_of_is_not_passed_off_as_equal(run):
    bare = replace(run, provenance={})
    changes = differences(bare, bare)
    assert changes == [Change("provenance", key, ABSENT, ABSENT) for key in RECORDED]
    assert describe(changes).startswith("provenance\n  versions: (absent) -> (absent)\n")


def test_what_one_run_has_no_record_of_is_a_difference(run):
    sections = {change.section for change in differences(run, replace(run, provenance={}))}
    assert sections == {"code", "plugins", "versions", "hardware", "data", "initial_weights"}
    assert {change.b for change in differences(run, replace(run, provenance={}))} == {ABSENT}


@pytest.mark.parametrize("key", RECORDED)
def test_a_damaged_record_stops_nothing(run, key):
    damaged = provenance(run, **{key: 3})
    assert {change.b for change in differences(run, damaged)} == {ABSENT}
    assert differences(damaged, damaged) == [Change("provenance", key, ABSENT, ABSENT)]


def test_differences_are_data_that_json_can_hold(run, tmp_path):
    changes = differences(run, finished(tmp_path / "other", "projector=mlp", "trackers=[console]"))
    held = [change._asdict() for change in changes]
    assert json.loads(json.dumps(held)) == held
