from pathlib import Path

import pytest
import torch
from plugin_files import plugin
from tiny import tiny_experiment, tiny_recipe

from nanovlm import ConfigError, DataError, NanoVLMError, load_experiment, load_plugins
from nanovlm.blueprint import Part, Recipe, collected, located, open_benchmark, open_dataset
from nanovlm.yaml_reader import dump_yaml

FOLDER = Path(__file__).parents[1] / "experiments"
FILES = sorted(FOLDER.glob("*.yaml"))  # not the ablations, which are several experiments each


@pytest.fixture
def refused(registries):
    """The message about an experiment with these overrides."""

    def refused(*overrides: str) -> str:
        with pytest.raises(NanoVLMError) as caught:
            Recipe.of(tiny_experiment(*overrides), registries)
        return str(caught.value)

    return refused


def test_an_experiment_becomes_parts_in_their_places():
    recipe = tiny_recipe("trackers=[console]")
    places = [part.where for part in recipe.parts]
    assert places == ["vision_encoder", "projector", "language_decoder", "data.train.0", "benchmarks.0", "trackers.0"]
    assert recipe.blueprint.projector.config.factor == 2
    assert recipe.blueprint.projector.plugin.module == "nanovlm_plugins.pixel_shuffle"


def test_all_problems_are_reported_at_once(refused):
    message = refused(
        "vision_encoder.name=siglib",
        "projector.facter=3",
        "language_decoder.vocab_size=many",
        "data.train=[{name: shaps}, {name: shapes, test_sise: 3}]",
        "benchmarks=[shapes, mmsta]",
        "trackers=[consol]",
    )
    problems = [line.removeprefix("- ") for line in message.splitlines() if line.startswith("- ")]
    assert problems == [
        "vision_encoder: unknown vision_encoder 'siglib'. Did you mean 'siglip'?",
        "projector: unknown option 'facter'. Did you mean 'factor'?",
        "language_decoder.vocab_size='many': input should be a valid integer",
        "data.train.0: unknown dataset 'shaps'. Did you mean 'shapes'?",
        "data.train.1: unknown option 'test_sise'. Did you mean 'test_size'?",
        "benchmarks.1: unknown dataset 'mmsta'. Did you mean 'mmstar'?",
        "trackers.0: unknown tracker 'consol'. Did you mean 'console'?",
    ]


def test_several_problems_of_one_part_are_told_apart(refused):
    problems = refused("projector.facter=3", "projector.factor=0", "data.train.0.sed=1")
    assert [line.partition("=")[0].partition(": ")[0] for line in problems.splitlines() if line.startswith("-")] == [
        "- projector.factor",
        "- projector",
        "- data.train.0",
    ]


def test_one_problem_is_no_list(refused):
    assert refused("projector.facter=3").startswith("projector: unknown option 'facter'")


@pytest.mark.parametrize(
    ("override", "hint", "known"),
    [
        (
            "data.train.0.wieght=2",
            "data.train.0: unknown option 'wieght'. Did you mean 'weight'?",
            "train_size, weight",
        ),
        (
            "benchmarks.0.evry=2",
            "benchmarks.0: unknown option 'evry'. Did you mean 'every'?",
            "every, image_size, limit",
        ),
        ("data.train.0.nmae=x", "data.train.0: unknown option 'nmae'. Did you mean 'name'?", "image_size, name, seed"),
        ("benchmarks.0.nmae=x", "benchmarks.0: unknown option 'nmae'. Did you mean 'name'?", "limit, name, seed"),
    ],
)
def test_a_misspelt_key_of_a_list_entry_may_be_the_cores_own(refused, override, hint, known):
    assert refused(override).startswith(hint)
    assert known in refused(override)


def test_what_cannot_be_fetched_says_where_it_stands(refused):
    message = refused("vision_encoder={weights: ./nowhere}", "projector.facter=3")
    assert "- vision_encoder.weights: './nowhere' is no folder here" in message
    assert "vision_encoder.weights=FOLDER" in message
    assert "- projector: unknown option 'facter'" in message


@pytest.mark.parametrize(
    ("role", "name", "weights"),
    [
        ("vision_encoder", "siglip", "google/siglip-base-patch16-224"),
        ("language_decoder", "smollm2", "HuggingFaceTB/SmolLM2-135M"),
    ],
)
def test_options_that_contradict_a_checkpoint_say_where_they_stand(refused, role, name, weights):
    """The architecture of these two is known without network."""
    message = refused(f"{role}={{name: {name}, weights: {weights}}}")  # over the tiny sizes
    assert message.startswith(f"{role}: ")
    assert f" contradicts the checkpoint '{weights}', which has " in message


def test_what_does_not_fit_together_says_where_it_stands():
    blueprint = tiny_recipe("projector.factor=3").blueprint
    with (
        torch.device("meta"),
        pytest.raises(ConfigError, match=r"^projector: factor=3 must divide the 4 x 4 patch grid"),
    ):
        blueprint.build_projector(blueprint.build_encoder(), blueprint.build_decoder())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vision_encoder.patch_size=5", "^vision_encoder: image_size=16 must be a multiple of patch_size=5"),
        (
            "language_decoder.num_attention_heads=5",
            "^language_decoder: num_attention_heads=5 must divide hidden_size=24",
        ),
    ],
)
def test_a_part_that_cannot_be_built_says_where_it_stands(override, message):
    blueprint = tiny_recipe(override).blueprint
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        blueprint.build_encoder(), blueprint.build_decoder()


class Picky(ConfigError):
    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} is not {other}")
        self.one = one


def test_an_error_keeps_its_class_and_says_where():
    with pytest.raises(DataError, match=r"^here: no rows$"), located("here"):
        raise DataError("no rows")
    with pytest.raises(Picky, match=r"^here: 1 is not 2$") as caught, located("here"):
        raise Picky(1, 2)
    assert caught.value.one == 1


def test_a_bug_is_left_as_it_is():
    with pytest.raises(KeyError, match=r"^'rows'$"), located("here"):
        raise KeyError("rows")


def test_problems_are_collected_until_the_end():
    reached = []
    with pytest.raises(ConfigError) as caught, collected() as problems:
        for number in (1, 2, 3):
            with problems:
                if number != 2:
                    raise DataError(f"problem {number}")
            reached.append(number)
    assert reached == [1, 2, 3]
    assert str(caught.value) == "- problem 1\n- problem 3"


def test_nothing_is_raised_where_nothing_is_wrong():
    with collected() as problems, problems:
        pass
    assert problems.found == []


def test_a_bug_among_the_problems_is_raised_at_once():
    with pytest.raises(ZeroDivisionError), collected() as problems:
        with problems:
            raise DataError("a problem")
        with problems:
            raise ZeroDivisionError


def test_a_dump_writes_every_option_out():
    dump = tiny_recipe("data.train.0.weight=2", "benchmarks.0.every=3").dump()
    assert dump["projector"] == {"name": "pixel_shuffle", "factor": 2}
    assert dump["data"]["train"] == [
        {"name": "shapes", "weight": 2.0, "seed": 0, "train_size": 64, "test_size": 400, "image_size": 16}
    ]
    assert (dump["benchmarks"][0]["every"], dump["benchmarks"][0]["test_size"]) == (3, 8)
    assert dump["training"]["warmup"] == 0.03
    assert dump["name"] == "quickstart"


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_dump_is_an_experiment_that_means_the_same(file, registries, tmp_path):
    recipe = Recipe.of(load_experiment(file), registries)
    written = tmp_path / "experiment.yaml"
    written.write_text(dump_yaml(recipe.dump()))
    again = Recipe.of(load_experiment(written), registries)
    assert again.parts == recipe.parts
    assert again.dump() == recipe.dump()
    assert again.experiment.name == file.stem
    for key in ("seed", "training", "device"):
        assert getattr(again.experiment, key) == getattr(recipe.experiment, key)


def test_a_dump_can_be_overridden_like_any_experiment(registries, tmp_path):
    written = tmp_path / "experiment.yaml"
    written.write_text(dump_yaml(tiny_recipe().dump()))
    again = load_experiment(written, ["training.epochs=2", "projector.factor=1"])
    assert (again.training.steps, again.training.epochs) == (0, 2)
    assert Recipe.of(again, registries).blueprint.projector.config.factor == 1


def test_a_dump_names_the_origin_that_was_chosen(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(plugin("pixel_shuffle"))
    registries = load_plugins([str(file)])
    recipe = Recipe.of(tiny_experiment("projector={name: 'mine:pixel_shuffle'}"), registries)
    written = tmp_path / "experiment.yaml"
    written.write_text(dump_yaml(recipe.dump()))
    assert Recipe.of(load_experiment(written), registries).blueprint.projector.cls.__name__ == "Sum"


def test_an_empty_dataset_says_where_it_stands():
    (part,) = tiny_recipe("data.train.0.train_size=0").datasets
    with pytest.raises(DataError, match=r"^data\.train\.0: shapes has no sample in its train split"):
        open_dataset(part, "train")


def test_a_benchmark_must_be_one():
    (part,) = tiny_recipe("benchmarks=[{name: the_cauldron, source: tiny}]").benchmarks
    with pytest.raises(DataError, match=r"^benchmarks\.0: the_cauldron "):
        open_benchmark(part)


def test_a_dataset_without_questions_is_no_benchmark(registries):
    part = Part.of(registries.datasets, "benchmarks.0", "the_cauldron", {"source": "tiny"})
    with pytest.raises(DataError, match=r"^benchmarks\.0: the_cauldron is for training only; a benchmark has prompt"):
        open_benchmark(part)
