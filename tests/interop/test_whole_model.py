"""``weights:`` that name a whole model: fine-tuning starts from its components."""

import json
import shutil
import warnings

import pytest
import torch
from tiny import tiny_experiment, tiny_model, tiny_recipe
from torch import Tensor
from upstream_fixtures import MAIN, V01, write_tokenizer

from nanovlm import CheckpointError, ConfigError, Experiment, VisionLanguageModel, load_experiment, load_plugins, train
from nanovlm.blueprint import ROLES, Recipe
from nanovlm.experiment import parse_experiment
from nanovlm.merging import override, split_override
from nanovlm.planning import plan
from nanovlm.weights import tied_once
from nanovlm.yaml_reader import dump_yaml

PARTS = {"vision_encoder": "siglip", "projector": "pixel_shuffle", "language_decoder": "smollm2"}


def starting_from(folder, *overrides: str, roles=ROLES) -> Experiment:
    """The tiny experiment, of which these components are no more than the names and weights of a whole model."""
    tree = tiny_experiment().model_dump()
    for role in roles:
        tree[role] = {"name": PARTS[role], "weights": str(folder)}
    for keys, value in map(split_override, overrides):
        tree = override(tree, keys, value)
    return parse_experiment(tree)


def recipe_of(experiment: Experiment) -> Recipe:
    return Recipe.of(experiment, load_plugins())


def started(experiment: Experiment, seed: int = 7) -> VisionLanguageModel:
    model = VisionLanguageModel(recipe_of(experiment).blueprint, seed)
    model.load_pretrained()
    return model


def state(model: VisionLanguageModel, role: str) -> dict[str, Tensor]:
    return tied_once(getattr(model, role))


def equal(model: VisionLanguageModel, other: VisionLanguageModel, role: str) -> bool:
    mine, theirs = state(model, role), state(other, role)
    return mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model whose options are no defaults."""
    folder = tmp_path_factory.mktemp("saved")
    model = tiny_model("projector.factor=4", "language_decoder.rope_theta=5000.0", "vision_encoder.image_mean=0.0")
    model.save_pretrained(folder / "model")
    return folder / "model"


def test_every_component_starts_as_the_models_own(saved):
    whole = VisionLanguageModel.from_pretrained(saved)
    model = started(starting_from(saved))
    assert all(equal(model, whole, role) for role in ROLES)
    assert model.projector.num_tokens == 1
    assert model.language_decoder.config.rope_theta == 5000.0
    assert model.vision_encoder.config.image_mean == 0.0
    assert model.text.prompt("What?", 1) == whole.text.prompt("What?", 1)


@pytest.mark.parametrize("role", ROLES)
def test_a_component_starts_so_alone(saved, role):
    whole = VisionLanguageModel.from_pretrained(saved)
    model = started(starting_from(saved, roles=[role]))
    assert [other for other in ROLES if equal(model, whole, other)] == [role]


@pytest.mark.filterwarnings("ignore:.*nanoVLM cuts a picture into tiles")
@pytest.mark.parametrize("folder", [MAIN, V01], ids=["current", "v0.1"])
def test_a_checkpoint_of_nanovlm_is_one_too(folder, tmp_path):
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    whole = VisionLanguageModel.from_pretrained(folder, tokenizer=str(tokenizer))
    model = started(starting_from(folder, f"language_decoder.tokenizer={tokenizer}"))
    assert all(equal(model, whole, role) for role in ROLES)
    assert model.vision_encoder.image == whole.vision_encoder.image
    assert model.text.prompt("What?", 1) == whole.text.prompt("What?", 1)


def test_training_goes_on_from_it(saved, tmp_path):
    rates = [f"training.learning_rate.{role}={rate}" for role, rate in zip(ROLES, (0, 0, 1e-3), strict=True)]
    train(starting_from(saved, *rates), tmp_path / "run")
    trained = VisionLanguageModel.from_pretrained(tmp_path / "run" / "model")
    whole = VisionLanguageModel.from_pretrained(saved)
    assert [role for role in ROLES if equal(trained, whole, role)] == ["vision_encoder", "projector"]


def test_the_runs_own_file_starts_from_it_again(saved, tmp_path):
    recipe = recipe_of(starting_from(saved))
    assert recipe.dump()["projector"] == {"name": "pixel_shuffle", "factor": 4, "weights": str(saved)}
    file = tmp_path / "experiment.yaml"
    file.write_text(dump_yaml(recipe.dump()))
    assert recipe_of(load_experiment(file)).parts == recipe.parts


def test_adapters_may_be_added_and_are_kept(saved, tmp_path):
    pytest.importorskip("peft")
    adapted = started(starting_from(saved, "language_decoder.lora={rank: 2, alpha: 3}"))
    whole = VisionLanguageModel.from_pretrained(saved)
    names = state(whole, "language_decoder")
    assert all(tensor.equal(state(adapted, "language_decoder")[name]) for name, tensor in names.items())
    with torch.no_grad():
        for parameter in adapted.trainable("language_decoder"):
            parameter.normal_()
    adapted.save_pretrained(tmp_path / "adapted")
    again = started(starting_from(tmp_path / "adapted"))
    assert again.blueprint.language_decoder.config.lora.rank == 2
    assert equal(again, adapted, "language_decoder")


def test_planning_reads_no_weights(saved, tmp_path):
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    made = plan(recipe_of(starting_from(tmp_path)))
    whole = VisionLanguageModel.from_pretrained(saved)
    assert made.total_parameters == sum(parameter.numel() for parameter in whole.parameters())


# What is refused


def test_another_component_than_the_models_is_refused(saved):
    with pytest.raises(ConfigError) as caught:
        tiny_recipe(f"projector={{name: average_pool, weights: {saved}}}")
    assert (
        f"projector: weights={str(saved)!r} is a whole model, and its projector is pixel_shuffle, not average_pool: "
        "name pixel_shuffle here, or other weights"
    ) in str(caught.value)


def test_of_another_component_nothing_is_said_about_its_package(saved, tmp_path):
    """That it comes from elsewhere than this one is no wonder."""
    folder = shutil.copytree(saved, tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    content["projector"]["name"] = "gone"
    content["plugins"]["projector"] = {"module": "theirs", "distribution": "theirs", "version": "1.0"}
    (folder / "config.json").write_text(json.dumps(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConfigError, match="its projector is gone, not pixel_shuffle"):
            recipe_of(starting_from(folder, roles=["projector"]))


def test_other_options_than_the_models_are_refused(saved):
    with pytest.raises(ConfigError, match=r"projector: factor=2 contradicts the checkpoint '.*', which has factor=4"):
        recipe_of(starting_from(saved, "projector.factor=2"))


def test_a_projector_starts_from_a_whole_model_only(tmp_path):
    with pytest.raises(ConfigError) as caught:
        tiny_recipe(f"projector={{name: mlp, weights: {tmp_path}}}")
    assert f"projector: weights={str(tmp_path)!r} is no whole model (a folder or a hub id), and mlp has no" in str(
        caught.value
    )


def test_random_weights_of_a_projector_are_what_it_has_anyway():
    assert tiny_recipe("projector={name: mlp, weights: random}").dump()["projector"] == {"name": "mlp"}


def test_a_projector_for_other_widths_does_not_fit(saved):
    recipe = recipe_of(starting_from(saved, "vision_encoder.hidden_size=32", roles=["projector"]))
    with pytest.raises(CheckpointError, match=r"projector: .* does not fit PixelShuffle:\n  misshapen \(1\)"):
        VisionLanguageModel(recipe.blueprint).load_pretrained()
