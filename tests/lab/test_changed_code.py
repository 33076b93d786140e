"""A sweep's finished runs are its answer only while the plugins are those that they were trained with."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sweeping import Teller, processes, starts, tiny_ablation

from nanovlm import ConfigError, load_plugins
from nanovlm.blueprint import Recipe
from nanovlm.lab.sweep import conductor
from nanovlm.lab.sweep.checks import runs_left
from nanovlm.lab.sweep.conductor import run_sweep
from nanovlm.training.interrupts import Stopped
from nanovlm.training.run import _made_of

RUNS = "factor=2/s0, factor=1/s0"
SHUFFLE = Path(__file__).parents[2] / "plugins" / "pixel_shuffle.py"


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    monkeypatch.setattr(conductor, "POLL", 0.02)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sweep"


@pytest.fixture
def sweep(tmp_path, folder, registries):
    """``sweep(*overrides, factors=, plugins=, factor_1="fail")`` in one folder, without a real training."""

    def sweep(*overrides, factors="[1, 2]", plugins=None, **behaviours):
        ablation = tiny_ablation(tmp_path, *overrides, factors=factors)
        return run_sweep(ablation, folder, plugins or registries, processes(**behaviours))

    return sweep


@pytest.fixture
def record(tmp_path, folder, registries):
    """``record(edit, plugins=)``: provenance of all runs as real ones write it, of now, then ``edit``ed."""

    def record(edit=lambda content: None, plugins=None):
        for file in folder.glob("*/s*/provenance.json"):
            experiment = tiny_ablation(tmp_path, "trackers=[console]").variants[0].experiment(0)
            content = _made_of(Recipe.of(experiment, plugins or registries), torch.device("cpu"))
            edit(content)
            file.write_text(json.dumps(content))

    return record


def edited(module, /, **changes):
    """What replaces a plugin's record."""

    def edit(content):
        (plugin,) = (plugin for plugin in content["plugins"] if plugin["module"].endswith(module))
        plugin.update(changes)

    return edit


def refusal(sweep, *overrides, **more):
    with pytest.raises(ConfigError) as refused:
        sweep(*overrides, **more)
    return str(refused.value)


def test_runs_of_the_plugins_that_are_here_are_the_answer(sweep, record, folder, capsys):
    sweep()
    record()
    assert [state.state for state in sweep(factors="[1, 2, 4]")] == ["done"] * 3
    assert len(starts(folder / "factor=2" / "s0")) == 1
    assert capsys.readouterr().err == ""


def test_an_edited_plugin_is_refused_by_name_with_the_ways_out(sweep, record, folder, registries):
    sweep()
    record(edited("pixel_shuffle", sha256="0" * 64))
    here = registries.projectors.find("pixel_shuffle").plugin
    assert refusal(sweep) == (
        f"{folder}: it holds other runs than those asked for:\n"
        f"  {RUNS}: projector pixel_shuffle: its plugin has changed ({here.path}): "
        f"nanovlm {here.version}, sha256 000000000000 in the run, "
        f"nanovlm {here.version}, sha256 {here.sha256[:12]} now\n"
        "To ask anew, use another --sweep-dir, or move these runs' folders away; "
        f"for the verdict on those that are there, nanovlm compare {folder}"
    )


def test_a_sweep_is_not_continued_with_an_edited_plugin(sweep, record, folder):
    sweep()
    record(edited("pixel_shuffle", sha256="0" * 64))
    assert f"{RUNS}: projector pixel_shuffle: its plugin has changed" in refusal(sweep, factors="[1, 2, 4]")
    assert not (folder / "factor=4").exists()


def test_a_stopped_run_goes_on_with_its_own_plugin_only(sweep, record, folder, tmp_path):
    plugin, run = tmp_path / "shuffle.py", folder / "factor=2" / "s0"
    plugin.write_text(SHUFFLE.read_text().replace('"pixel_shuffle"', '"shuffle"'))
    overrides = ("projector.name=shuffle",)
    first = load_plugins([str(plugin)])
    with Teller([signal.SIGINT], [run / "metrics.jsonl"]), pytest.raises(Stopped):
        sweep(*overrides, plugins=first, factor_2="last")
    sha256 = first.projectors.find("shuffle").plugin.sha256
    record(edited("pixel_shuffle", module="shuffle", distribution="shuffle", version="", sha256=sha256))
    plugin.write_text(f"{plugin.read_text()}\n# another one\n")
    told = refusal(sweep, *overrides, plugins=load_plugins([str(plugin)]))
    assert f"factor=2/s0: projector shuffle: its plugin has changed ({plugin}): shuffle, sha256 {sha256[:12]}" in told
    assert "nanovlm compare" not in told  # nothing has finished
    plugin.write_text(plugin.read_text().removesuffix("\n# another one\n"))
    assert all(state.state == "done" for state in sweep(*overrides, plugins=load_plugins([str(plugin)])))


def test_one_plugin_of_several_components_is_told_once(sweep, record):
    sweep()
    record(edited("shapes", sha256="0" * 64))
    assert "data.train.0 shapes, benchmarks.0 shapes: its plugin has changed" in refusal(sweep)


def test_options_that_an_edit_took_away_do_not_hide_that_it_was_edited(sweep, record, folder):
    sweep()
    record(edited("pixel_shuffle", sha256="0" * 64))
    for file in folder.glob("*/s0/experiment.yaml"):
        file.write_text(file.read_text().replace("factor:", "old_factor:"))
    assert "projector pixel_shuffle: its plugin has changed" in refusal(sweep)


def test_another_version_of_a_package_is_refused_though_the_file_is_the_same(sweep, record, registries, monkeypatch):
    here = registries.projectors.find("pixel_shuffle").plugin
    entry = registries.projectors.find("pixel_shuffle")
    packaged = entry._replace(plugin=replace(here, distribution="shuffles", version="1.1"))
    sweep()
    record(edited("pixel_shuffle", distribution="shuffles", version="1.0"))
    others = [each for each in registries.projectors.entries if each is not entry]
    monkeypatch.setattr(registries.projectors, "entries", [*others, packaged])
    assert f": shuffles 1.0, sha256 {here.sha256[:12]} in the run, shuffles 1.1, sha256" in refusal(sweep)


@pytest.mark.parametrize(
    "edit",
    [
        edited("console", sha256="0" * 64),  # a tracker changes no result
        edited("pixel_shuffle", version="0.0.9"),  # the core is another, and the plugin is not
        lambda content: content.pop("plugins"),
        lambda content: content.update(plugins=None, resumed=None),
        lambda content: content.update(plugins=[None, {"module": "x", "used_for": ["projector"]}]),
        lambda content: content.update(source="0" * 64),
    ],
)
def test_what_changes_no_result_or_was_not_recorded_refuses_nothing(sweep, record, edit, folder, capsys):
    sweep("trackers=[console]")
    record(edit)
    assert [state.state for state in sweep("trackers=[console]")] == ["done", "done"]
    assert capsys.readouterr().err == ""  # nothing else is trained
    assert len(starts(folder / "factor=2" / "s0")) == 1


@pytest.mark.parametrize("which", ["begun", "resumed"])
def test_a_plugin_that_changed_on_the_way_is_told_too(sweep, record, which):
    """By `nanovlm train --resume`, say: the run is not that of one plugin."""

    def resumed(content):
        later = json.loads(json.dumps({"step": 2} | content))
        edited("pixel_shuffle", sha256="0" * 64)(later if which == "resumed" else content)
        content["resumed"] = [later]

    sweep()
    record(resumed)
    assert "sha256 000000000000 in the run" in refusal(sweep)


def test_damaged_provenance_is_said_before_anything_is_trained(sweep, folder):
    sweep()
    file = folder / "factor=2" / "s0" / "provenance.json"
    file.write_text("{")
    assert f"{file} is damaged" in refusal(sweep, factors="[1, 2, 4]")
    assert not (folder / "factor=4").exists()


@pytest.mark.parametrize(
    "edit", [lambda made: made.update(source="0" * 64), lambda made: made.update(resumed=[{"source": "0" * 64}])]
)
def test_other_code_of_nanovlm_is_told_before_the_others_are_trained(sweep, record, capsys, edit):
    sweep()
    record(edit)
    assert len(sweep(factors="[1, 2, 4]")) == 3
    assert capsys.readouterr().err == (
        '2 of 3 runs were trained by other code of nanovlm than is here now, so the verdict will be "not paired"; '
        "for one that is, use another --sweep-dir\n"
    )


def test_what_is_left_is_what_is_not_done_as_it_is_asked_for(sweep, record, folder, tmp_path, registries):
    def left(*overrides, factors="[1, 2]"):
        asked = tiny_ablation(tmp_path, *overrides, factors=factors)
        return [run.label for run in runs_left(asked, folder, registries)]

    assert left() == RUNS.split(", ")
    sweep(factor_1="fail")
    assert left() == ["factor=1/s0"]
    sweep()
    assert left() == []
    assert left(factors="[1, 2, 4]") == ["factor=4/s0"]
    assert left("training.steps=4") == RUNS.split(", ")
    record(edited("pixel_shuffle", sha256="0" * 64))
    assert left() == RUNS.split(", ")
    record()
    asked = folder / "ablation.yaml"
    asked.write_text(asked.read_text().replace("name: question", "name: another"))
    assert left() == RUNS.split(", ")
    shutil.rmtree(folder)
    assert left() == RUNS.split(", ")


def test_what_is_done_under_an_older_name_is_not_left(tmp_path, folder, registries):
    resampler = "{name: resampler, num_queries: 4, num_layers: 1, num_heads: 1, head_dim: 8}"

    def asked(*values):
        axes = f"ablate.axes={{projector: [pixel_shuffle, {', '.join(values)}]}}"
        return tiny_ablation(tmp_path, axes, "ablate.baseline=projector=pixel_shuffle")

    run_sweep(asked(resampler), folder, registries, processes())
    left = runs_left(asked(resampler, resampler.replace("4", "2")), folder, registries)
    assert [run.label for run in left] == ["projector=resampler-num_queries=2/s0"]
    assert (folder / "projector=resampler").is_dir()  # asking renames nothing
