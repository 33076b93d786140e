"""Paired by construction: the same samples at the same step, the same weights in all that a setting leaves alone."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import tiny_experiment, tiny_recipe

from nanovlm import VisionLanguageModel, load_plugins
from nanovlm.blueprint import ROLES, Recipe
from nanovlm.data.workers import load
from nanovlm.training.launch import lay_out_steps, open_benchmarks, open_mixture
from nanovlm.training.run import fingerprint

REGISTRIES = load_plugins()
COMPONENTS = [(registry.kind, entry) for registry in REGISTRIES for entry in registry if registry.kind in ROLES]
LONG = ("training.steps=12", "data.validation.share=0.2")  # more than one pass over the samples
SHORT_ROWS = "training.tokens_per_row=120"  # the longest sample just fits: a step takes several rows

every_component = pytest.mark.parametrize(
    ("role", "entry"), COMPONENTS, ids=[f"{role}-{entry.name}" for role, entry in COMPONENTS]
)


def option(role: str, entry: Any) -> str:
    """An override that puts a component in its role, as small as it can be."""
    return f"{role}={json.dumps({'name': entry.name, **entry.cls.Config.tiny().model_dump()})}"


def built(*overrides: str, plugin_files: tuple[str, ...] = ()) -> tuple[Recipe, VisionLanguageModel]:
    recipe = Recipe.of(tiny_experiment(*overrides), load_plugins(plugin_files))
    return recipe, VisionLanguageModel(recipe.blueprint, recipe.experiment.seed)


def rows(*overrides: str, plugin_files: tuple[str, ...] = ()) -> Iterator[list[tuple[str, ...]]]:
    """Of each step, the samples' ids in each of its rows."""
    recipe, model = built(*overrides, plugin_files=plugin_files)
    steps, _ = lay_out_steps(recipe, model, open_mixture(recipe))
    for step in load(steps, 0):
        yield [row.ids for row in step.rows]


def ids(*overrides: str, plugin_files: tuple[str, ...] = ()) -> list[list[str]]:
    """Of each step, the samples' ids in their order."""
    return [[name for row in step for name in row] for step in rows(*overrides, plugin_files=plugin_files)]


def weights(*overrides: str, plugin_files: tuple[str, ...] = ()) -> dict[str, str]:
    """A hash of each component's initial weights."""
    _, model = built(*overrides, plugin_files=plugin_files)
    return {role: fingerprint(getattr(model, role)) for role in ROLES}


def shapes(*overrides: str) -> dict[str, torch.Size]:
    """Of the projector's tensors."""
    _, model = built(*overrides)
    return {name: tensor.shape for name, tensor in model.projector.state_dict().items()}


def held_out(*overrides: str) -> list[str]:
    mixture = open_mixture(tiny_recipe(*LONG, *overrides))
    return [mixture.datasets[d].id(index) for d, index in mixture.held_out]


@pytest.fixture(scope="module")
def expected() -> list[list[str]]:
    found = ids(*LONG)
    assert [len(step) for step in found] == [8] * 12
    assert len({name for step in found for name in step}) > 40  # most of the 64, less the held-out ones
    return found


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("tokens_per_row", [120, 300, 1024])
def test_factors_see_the_same_samples_at_each_step(expected, factor, tokens_per_row):
    assert ids(*LONG, f"projector.factor={factor}", f"training.tokens_per_row={tokens_per_row}") == expected


def test_rows_differ_where_the_samples_are_the_same():
    """So the test above is none of steps that happen to be laid out alike."""
    first, second = (list(rows(*LONG, SHORT_ROWS, f"projector.factor={factor}")) for factor in (1, 4))
    assert first != second
    assert max(map(len, first)) > 1


@every_component
def test_every_component_sees_the_same_samples_at_each_step(expected, role, entry):
    assert ids(*LONG, option(role, entry)) == expected


@every_component
def test_every_component_leaves_the_others_initial_weights_as_they_are(role, entry):
    plain, changed = weights(), weights(option(role, entry))
    differing = {other for other in ROLES if plain[other] != changed[other]} - {role}
    new_shapes = role != "projector" and shapes() != shapes(option(role, entry))  # they are its neighbours' sizes
    assert differing == ({"projector"} if new_shapes else set())


@pytest.mark.parametrize("projector", list(REGISTRIES.projectors), ids=lambda entry: entry.name)
def test_every_projector_draws_the_same_whatever_its_neighbours_draw(projector):
    """Neighbours that are deeper, and so draw more, but no wider."""
    deeper = ("vision_encoder.num_hidden_layers=3", "language_decoder.num_hidden_layers=1")
    plain, changed = weights(option("projector", projector)), weights(option("projector", projector), *deeper)
    assert {role for role in ROLES if plain[role] != changed[role]} == {"vision_encoder", "language_decoder"}


STREAM = """
from nanovlm import Benchmark, ComponentConfig, Sample, Turn, hookimpl
from nanovlm.data.dataset import Row

class Brook(Benchmark):
    class Config(ComponentConfig):
        size: int = 40
    streaming = True
    def __init__(self, config, split):
        self.config = config
    def stream(self):
        return (Row(f"brook-{i}", i) for i in range(self.config.size))
    def sample(self, row):
        return Sample([], [Turn("Which?", f"{row.content}")], row.id)

@hookimpl
def register_datasets(register):
    register("brook", Brook)
"""


@pytest.mark.parametrize("override", ["projector.factor=1", "projector.factor=4", "projector=mlp", SHORT_ROWS])
def test_a_stream_gives_the_same_samples_at_each_step(tmp_path, override):
    file = tmp_path / "brook.py"
    file.write_text(STREAM)
    overrides = ("data.train=[brook]", "data.validation.limit=5", *LONG)
    plain = ids(*overrides, plugin_files=(str(file),))
    assert len({name for step in plain for name in step}) > 20
    assert ids(*overrides, override, plugin_files=(str(file),)) == plain
    assert ids(*overrides, "seed=1", plugin_files=(str(file),)) != plain


def test_the_runs_seed_decides_order_and_every_initial_weight(expected):
    assert ids(*LONG, "seed=1") != expected
    first, second = weights(), weights("seed=1")
    assert [role for role in ROLES if first[role] == second[role]] == []


def test_the_runs_seed_leaves_splits_and_test_items_as_they_are():
    def asked(*overrides: str) -> list[Any]:
        return [sample for questions in open_benchmarks(tiny_recipe(*overrides)) for sample in questions.samples]

    def words(samples: list[Any]) -> list[Any]:
        return [(sample.id, sample.turns) for sample in samples]

    assert held_out() == held_out("seed=1") != []
    assert words(asked()) == words(asked("seed=1")) != []


def test_the_data_seed_decides_the_split_and_no_initial_weight():
    assert held_out() != held_out("data.seed=1")
    assert weights() == weights("data.seed=1")


def test_components_of_equal_shapes_draw_different_weights():
    _, model = built("vision_encoder.hidden_size=24", "vision_encoder.intermediate_size=48")
    drawn = {
        role: [tensor for tensor in getattr(model, role).state_dict().values() if tensor.unique().numel() > 1]
        for role in ("vision_encoder", "language_decoder")
    }
    alike = [(a, b) for a in drawn["vision_encoder"] for b in drawn["language_decoder"] if a.shape == b.shape]
    assert len(alike) >= 4
    assert not any(a.equal(b) for a, b in alike)


GREEDY = """
import torch
from nanovlm import hookimpl
from nanovlm_plugins.siglip import Siglip

class Greedy(Siglip):
    def __init__(self, config):
        torch.manual_seed(7)
        torch.rand(10_000)
        super().__init__(config)
        torch.rand(10_000)

@hookimpl
def register_vision_encoders(register):
    register("greedy", Greedy)
"""


def test_a_plugin_that_draws_from_the_global_generator_leaves_the_others_untouched(tmp_path):
    file = tmp_path / "greedy.py"
    file.write_text(GREEDY)
    sizes = {key: value for key, value in tiny_recipe().dump()["vision_encoder"].items() if key != "name"}
    greedy = json.dumps({"name": "greedy", **sizes})
    torch.manual_seed(5)
    before = torch.get_rng_state()
    plain, changed = weights(), weights(f"vision_encoder={greedy}", plugin_files=(str(file),))
    assert {role for role in ROLES if plain[role] != changed[role]} == {"vision_encoder"}
    assert torch.get_rng_state().equal(before)
