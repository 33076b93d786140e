"""A model or a run whose components are gone, or come from elsewhere now: at every door, by name."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
from command import nanovlm
from plugin_files import Site, plugin
from test_docs import projector
from tiny import tiny_experiment, tiny_model

from nanovlm import NanoVLMError, VisionLanguageModel, load_plugins, resume, train
from nanovlm.blueprint import Recipe
from nanovlm.lab.costs import costs_of
from nanovlm.lab.results import Result

GATED = plugin("gated_mlp")
FACES = """
from nanovlm import hookimpl
from nanovlm_plugins.shapes import Shapes

class Faces(Shapes):
    pass

@hookimpl
def register_datasets(register):
    register("faces", Faces)
"""
SMALL = "{name: faces, train_size: 64, test_size: 8, image_size: 16}"
PACKAGE = "nanovlm-gated-mlp 1.2 (module nanovlm_gated_mlp): pip install nanovlm-gated-mlp"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run whose projector and dataset come from an installed distribution; then that one is removed again."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("made")
        site = Site(folder, monkeypatch)
        site.install("nanovlm-gated-mlp", {"nanovlm_gated_mlp": GATED, "nanovlm_faces": FACES})
        overrides = ("projector=gated_mlp", f"data.train=[{SMALL}]", f"benchmarks=[{SMALL}]", "checkpoints.every=1")
        train(tiny_experiment(*overrides), folder / "run")
        site.forget()
    return folder / "run"


@pytest.fixture
def run(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(NanoVLMError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def test_a_model_names_the_package_that_had_its_component(run):
    assert refusal(VisionLanguageModel.from_pretrained, run / "model") == (
        f"projector 'gated_mlp' is not installed here. The model in {run}/model was saved with it from {PACKAGE}"
    )


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "--prompt", "What?", "--model"),
        ("export", "--to", "folder", "OUT"),
        ("evaluate", "--benchmark", "shapes"),
    ],
    ids=lambda command: command[0],
)
def test_so_does_every_command_that_opens_it(run, tmp_path, command):
    name, *rest = [str(tmp_path / "out") if word == "OUT" else word for word in command]
    arguments = [*rest, run / "model"] if name == "generate" else [run / "model", *rest]
    if name == "export":
        arguments = [run / "model", rest[-1], *rest[:-1]]
    done = nanovlm(name, *arguments)
    assert done.status == 2
    assert f"projector 'gated_mlp' is not installed here. The model in {run}/model was saved with it from" in done.err
    assert "pip install nanovlm-gated-mlp" in done.err
    assert not (tmp_path / "out").exists()


def test_evaluating_names_the_package_that_had_the_benchmark(run):
    done = nanovlm("evaluate", run)
    assert done.status == 2
    assert done.err == (
        f"nanovlm: benchmarks.0: dataset 'faces' is not installed here. The run in {run} was made with it from "
        "nanovlm-gated-mlp 1.2 (module nanovlm_faces): pip install nanovlm-gated-mlp\n"
    )


def test_a_run_is_not_resumed_and_all_that_is_missing_is_named_at_once(run):
    message = refusal(resume, run)
    made = f"is not installed here. The run in {run} was made with it from nanovlm-gated-mlp 1.2 (module"
    fix = "pip install nanovlm-gated-mlp"
    assert message.splitlines() == [
        f"- projector 'gated_mlp' {made} nanovlm_gated_mlp): {fix}",
        f"- data.train.0: dataset 'faces' {made} nanovlm_faces): {fix}",
        f"- benchmarks.0: dataset 'faces' {made} nanovlm_faces): {fix}",
    ]
    done = nanovlm("train", "--resume", run)
    assert (done.status, done.err) == (2, f"nanovlm: {message}\n")


def test_beginning_again_from_a_runs_own_file_names_the_package_too(run):
    """As the last line of `nanovlm train` proposes."""
    made = f"is not installed here. The run in {run} was made with it from nanovlm-gated-mlp 1.2 (module"
    done = nanovlm("train", run / "experiment.yaml", "seed=1")
    assert (done.status, done.err.splitlines()[0]) == (
        2,
        f"nanovlm: - projector 'gated_mlp' {made} nanovlm_gated_mlp): pip install nanovlm-gated-mlp",
    )
    for choice in ("projector=mlp", "projector=gated_mpl"):  # no more what the run had: all others are
        done = nanovlm("train", run / "experiment.yaml", choice)
        assert "projector" not in done.err
        assert f"data.train.0: dataset 'faces' {made} nanovlm_faces)" in done.err


def test_beginning_from_another_file_names_no_package(run):
    (run / "experiment.yaml").rename(run / "mine.yaml")
    done = nanovlm("train", run / "mine.yaml")
    assert done.status == 2
    assert "unknown projector 'gated_mlp'" in done.err
    assert "was made with it" not in done.err


def test_going_on_with_a_changed_plugin_tells_of_its_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(GATED)
    train(tiny_experiment("projector=gated_mlp", "checkpoints.every=1"), tmp_path / "run", [str(file)])
    note = f"projector 'gated_mlp': its plugin {file} has changed since the run began"
    arguments = ("train", "--resume", tmp_path / "run", "trackers=[console]", "--plugin", file)
    done = nanovlm(*arguments, "training.steps=4")
    assert (done.status, "has changed" in done.out) == (0, False)
    file.write_text(f"{GATED}# edited")
    for steps in (5, 6):  # what it began with, not what it went on with
        done = nanovlm(*arguments, f"training.steps={steps}")
        assert done.status == 0
        assert done.out.splitlines().count(note) == 1


def test_comparing_needs_no_component_and_says_what_is_not_known_without(run):
    costs, notes = costs_of({"gated": [Result.open(run)]})
    assert costs["gated"].parameters is None
    (note,) = notes
    assert note.startswith(
        "gated: its parameters, image tokens and FLOPs are not known: - projector 'gated_mlp' is not"
    )
    assert f"The run in {run} was made with it from {PACKAGE}" in note


def test_starting_from_a_whole_model_names_the_package_too(run):
    choice = f"projector={{name: gated_mlp, weights: {run}/model}}"
    message = refusal(Recipe.of, tiny_experiment(choice), load_plugins())
    assert message == (
        f"projector 'gated_mlp' is not installed here. The model in {run}/model was saved with it from {PACKAGE}"
    )


def test_a_misspelt_name_is_not_taken_for_a_package_that_is_gone(run):
    with pytest.raises(NanoVLMError, match=r"unknown projector 'pixel_shufle'\. Did you mean 'pixel_shuffle'"):
        Recipe.of(tiny_experiment(f"projector={{name: pixel_shufle, weights: {run}/model}}"), load_plugins())


def test_a_package_that_is_here_and_does_not_load_is_shown(run, tmp_path, monkeypatch):
    site = Site(tmp_path, monkeypatch)
    site.install("nanovlm-gated-mlp", {"nanovlm_gated_mlp": "nanovlm_contract = 2"})
    message = refusal(VisionLanguageModel.from_pretrained, run / "model")
    site.forget()
    assert PACKAGE in message
    assert f"Not loaded: {site.folder / 'nanovlm_gated_mlp.py'}: was written for contract 2" in message


def test_a_version_that_has_it_no_more_asks_for_the_one_that_had_it(run, tmp_path, monkeypatch):
    site = Site(tmp_path, monkeypatch)
    site.version = "2.0"
    site.install("nanovlm-gated-mlp", {"nanovlm_gated_mlp": plugin("gated_mlp_2")})
    message = refusal(VisionLanguageModel.from_pretrained, run / "model")
    site.forget()
    assert message.endswith(
        "from nanovlm-gated-mlp 1.2 (module nanovlm_gated_mlp), and 2.0, which is here, has none: "
        "pip install nanovlm-gated-mlp==1.2"
    )


def test_a_name_that_its_own_plugin_does_not_know_is_misspelt(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(file.read_text().replace('"pixel_shuffle"', '"pixel_shufle"', 1))
    with pytest.raises(NanoVLMError, match=r"unknown projector 'pixel_shufle'\. Did you mean 'pixel_shuffle'"):
        VisionLanguageModel.from_pretrained(tmp_path / "model")


def test_a_component_from_another_package_is_taken_and_told_of(run, tmp_path, monkeypatch):
    site = Site(tmp_path, monkeypatch)
    site.install("fork", {"fork": GATED, "forked_faces": FACES})
    expected = (
        "projector 'gated_mlp' comes from fork 1.2 here. The model in {} was saved with that of nanovlm-gated-mlp 1.2: "
        "is it the same?"
    )
    with pytest.warns(UserWarning) as caught:
        VisionLanguageModel.from_pretrained(run / "model")
    assert [str(warning.message) for warning in caught] == [expected.format(run / "model")]
    done = nanovlm("generate", "--model", run, "--prompt", "What?")
    assert (done.status, done.err) == (0, f"nanovlm: {expected.format(run / 'model')}\n")
    with pytest.warns(UserWarning, match="comes from fork 1.2 here"):
        Recipe.of(tiny_experiment(f"projector={{name: gated_mlp, weights: {run}/model}}"), load_plugins())
    done = nanovlm("train", "--resume", run, "training.steps=4", "trackers=[console]")
    assert done.status == 0
    assert f"projector 'gated_mlp' comes from fork 1.2 here. The run in {run} was made with that of" in done.out
    site.forget()


def test_another_version_of_the_same_package_is_no_matter(run, tmp_path, monkeypatch):
    site = Site(tmp_path, monkeypatch)
    site.version = "1.3"
    site.install("nanovlm-gated-mlp", {"nanovlm_gated_mlp": GATED})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VisionLanguageModel.from_pretrained(run / "model")
    site.forget()


def test_a_plugin_given_by_path_is_asked_for_with_the_runs_own_copy(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(GATED)
    train(tiny_experiment("projector=gated_mlp"), tmp_path / "run", [str(file)])
    copy = tmp_path / "run" / "mine.py"
    assert refusal(VisionLanguageModel.from_pretrained, tmp_path / "run" / "model").endswith(
        f"was saved with it from the file mine.py: give it by --plugin {copy}"
    )
    assert nanovlm("generate", "--model", tmp_path / "run", "--prompt", "What?", "--plugin", copy).status == 0
    shutil.copytree(tmp_path / "run" / "model", tmp_path / "moved" / "model")
    message = refusal(VisionLanguageModel.from_pretrained, tmp_path / "moved" / "model")
    assert message.endswith("from the file mine.py: give it by --plugin")


def test_a_default_plugin_that_this_nanovlm_lacks_asks_for_the_version(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["projector"]["name"] = "two_layer"
    config["plugins"]["projector"] |= {"module": "nanovlm_plugins.two_layer", "version": "0.9.0"}
    file.write_text(json.dumps(config))
    assert refusal(VisionLanguageModel.from_pretrained, tmp_path / "model").endswith(
        "was saved with it from nanovlm 0.9.0 (module nanovlm_plugins.two_layer): "
        "install that version, or give its file two_layer.py by --plugin"
    )


@pytest.mark.parametrize("plugins", [None, [], {"projector": None}, {"projector": {}}, {"projector": "x"}])
def test_without_a_record_the_name_is_unknown_and_nothing_more(tmp_path, plugins):
    tiny_model().save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text()) | {"plugins": plugins}
    config["projector"]["name"] = "gated_mlp"
    file.write_text(json.dumps(config))
    with pytest.raises(NanoVLMError, match="unknown projector 'gated_mlp'"):
        VisionLanguageModel.from_pretrained(tmp_path / "model")


def test_a_model_records_the_contract_that_its_plugin_was_written_for(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f"nanovlm_contract = 1\n{projector()}")
    recipe = Recipe.of(tiny_experiment("projector=two_layer"), load_plugins([str(file)]))
    VisionLanguageModel(recipe.blueprint).save_pretrained(tmp_path / "model")
    plugins = json.loads((tmp_path / "model" / "config.json").read_text())["plugins"]
    assert (plugins["projector"]["contract"], plugins["vision_encoder"]["contract"]) == (1, None)
