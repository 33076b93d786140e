"""The schema that editors check experiments by refuses what the reader refuses, and nothing that it takes."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import nanovlm
from jsonschema import Draft7Validator
from plugin_files import Site, plugin
from test_docs import PAGES, blocks

from nanovlm import NanoVLMError, load_experiment, load_plugins
from nanovlm.blueprint import Recipe
from nanovlm.experiment import NamedBenchmark, NamedDataset
from nanovlm.json_schema import experiment_schema
from nanovlm.lab import load_ablation, plan_ablation
from nanovlm.merging import ABLATE, ROLES
from nanovlm.yaml_reader import parse_yaml, read_yaml

FOLDER = Path(__file__).parents[1] / "experiments"
FILES = sorted(FOLDER.rglob("*.yaml"))
COMMITTED = FOLDER / "experiment.schema.json"
REGISTRIES = load_plugins()
SCHEMA = experiment_schema(REGISTRIES)
COMPONENTS = [(registry, entry) for registry in REGISTRIES for entry in registry]

every_file = pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(FOLDER)) for file in FILES])
every_component = pytest.mark.parametrize(
    ("registry", "entry"), COMPONENTS, ids=[f"{registry.kind}-{entry.name}" for registry, entry in COMPONENTS]
)


def errors(content: Any, schema: dict[str, Any] = SCHEMA) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in Draft7Validator(schema).iter_errors(content)]


def placed(registry, choice: Any) -> dict[str, Any]:
    """An experiment that names a component where its kind stands."""
    if registry.kind in ROLES:
        return {registry.kind: choice}
    return {"data": {"train": [choice]}} if registry.kind == "dataset" else {f"{registry.kind}s": [choice]}


def branch(registry, name: str) -> dict[str, Any]:
    """The alternative for a component by its name."""
    items = {
        "dataset": SCHEMA["properties"]["data"]["properties"]["train"],
        "tracker": SCHEMA["properties"]["trackers"],
    }
    place = SCHEMA["definitions"].get(registry.kind) or items[registry.kind]["items"]
    return named(place["anyOf"], name)


def named(alternatives: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The one of a component."""
    names = [each.get("properties", {}).get("name", {}).get("anyOf", ()) for each in alternatives]
    found = [each for each, spellings in zip(alternatives, names, strict=True) if {"const": name} in spellings]
    assert len(found) == 1
    return found[0]


def test_it_is_a_schema():
    Draft7Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA, allow_nan=False)) == SCHEMA


def test_the_one_that_is_kept_is_fresh():
    fresh = experiment_schema(REGISTRIES.defaults())
    command = "nanovlm schema --defaults > experiments/experiment.schema.json"
    assert json.loads(COMMITTED.read_text(encoding="utf-8")) == fresh, f"what it describes has changed: run `{command}`"
    assert nanovlm("schema", "--defaults").out == COMMITTED.read_text(encoding="utf-8")


def test_the_defaults_alone_and_a_plugin_do_not_go_together():
    done = nanovlm("schema", "--defaults", "--plugin", "mine.py")
    assert (done.status, done.out) == (2, "")
    assert "--defaults would leave out what --plugin mine.py adds: give one of the two" in done.err


@every_file
def test_every_experiment_is_valid_and_names_the_schema(file):
    first = file.read_text(encoding="utf-8").splitlines()[0]
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert (file.parent / named).resolve() == COMMITTED
    assert errors(read_yaml(file)) == []


@every_file
def test_so_is_every_experiment_with_all_options_written_out(file):
    if ABLATE in read_yaml(file):
        variants = load_ablation(file).variants
        experiments = [variant.experiment(0) for variant in variants]
    else:
        experiments = [load_experiment(file)]
    for experiment in experiments:
        assert errors(Recipe.of(experiment, REGISTRIES, resolve=False).dump()) == []


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(PAGES[page], "yaml")])
def test_so_is_every_experiment_that_a_page_shows(page, tmp_path):
    """With the plugins that it shows."""
    plugins = [text for text in blocks(PAGES[page], "python") if "@hookimpl" in text]
    files = [tmp_path / f"plugin_{i}.py" for i in range(len(plugins))]
    for file, text in zip(files, plugins, strict=True):
        file.write_text(text, encoding="utf-8")
    schema = experiment_schema(load_plugins([str(file) for file in files]))
    for text in blocks(PAGES[page], "yaml"):
        assert errors(parse_yaml(text, page), schema) == []


def test_the_pages_that_are_about_experiments_show_some():
    for page in ("README.md", "CONTRIBUTING.md", "experiments/README.md"):
        assert blocks(PAGES[page], "yaml")


@every_component
def test_every_component_is_taken_with_its_options_and_without_if_none_must_be_given(registry, entry):
    tiny = json.loads(entry.cls.Config.tiny().model_dump_json())
    for choice in ({"name": entry.name} | tiny, {"name": f"nanovlm:{entry.name}"} | tiny):
        assert errors(placed(registry, choice)) == []
    needs_options = any(field.is_required() for field in entry.cls.Config.model_fields.values())
    for choice in (entry.name, {"name": entry.name}):
        assert bool(errors(placed(registry, choice))) == needs_options


@every_component
def test_every_option_is_there_with_its_description_and_default(registry, entry):
    found = branch(registry, entry.name)
    assert found["description"] == entry.doc
    for name, field in entry.cls.Config.model_fields.items():
        assert found["properties"][name].get("description") == field.description
        if not field.is_required():
            assert found["properties"][name]["default"] == json.loads(json.dumps(field.get_default(), default=dict))
    beside = {"dataset": NamedDataset.model_fields.keys()}.get(registry.kind, {"name"})
    beside |= {"weights"} if registry.kind in ROLES else set()
    assert found["properties"].keys() == entry.cls.Config.model_fields.keys() | beside


def test_the_keys_beside_a_benchmarks_options_are_explained():
    found = named(SCHEMA["properties"]["benchmarks"]["items"]["anyOf"], "shapes")
    for key, field in NamedBenchmark.model_fields.items():
        if key != "name":
            assert found["properties"][key]["description"] == field.description


# What a file that extends the quickstart may say.
RIGHT = {
    "nothing": "seed: 1",
    "a name": "projector: mlp",
    "options of the component below": "projector: {factor: 4}",
    "a component with its origin": "projector: {name: 'nanovlm:pixel_shuffle', factor: 4}",
    "a component with its module's name": "projector: {name: 'pixel_shuffle:pixel_shuffle', factor: 4}",
    "a component with its whole module": "projector: 'nanovlm_plugins.pixel_shuffle:pixel_shuffle'",
    "a dataset with its origin": "data: {train: ['nanovlm:shapes', {name: 'nanovlm:shapes', weight: 2}]}",
    "a part of a whole model": "projector: {name: pixel_shuffle, factor: 2, weights: random}",
    "one number for all": "training: {learning_rate: 1e-3, weight_decay: 0}",
    "a number for one": "training: {learning_rate: {projector: 1e-3}}",
    "another budget": "training: {samples: 8000}",
    "all budgets but one 0": "training: {samples: 8000, steps: 0, epochs: 0.0, flops: 0}",
    "a word or a number": "data: {workers: 2}",
    "nothing for an option": "language_decoder: {lora: null}",
    "options of an option": "language_decoder: {lora: {rank: 4}}",
    "a list of names": "trackers: [console]",
    "keys beside a dataset's options": "data: {train: [{name: shapes, weight: 2, train_size: 64}]}",
    "keys beside a benchmark's options": "benchmarks: [shapes, {name: shapes, every: 3, limit: 2}]",
}

WRONG = {
    "a misspelt key at the top": "trianing: {steps: 3}",
    "a misspelt key in a section": "training: {step: 3}",
    "a misspelt key two sections down": "data: {validation: {shares: 0}}",
    "a misspelt component in a section": "training: {learning_rate: {projektor: 0}}",
    "a misspelt option": "projector: {name: pixel_shuffle, facter: 2}",
    "a misspelt option of the component below": "projector: {facter: 2}",
    "a misspelt option of an option": "language_decoder: {lora: {rnk: 3}}",
    "a misspelt key beside a dataset's options": "data: {train: [{name: shapes, wieght: 2}]}",
    "a key of a dataset beside a benchmark's options": "benchmarks: [{name: shapes, weight: 2}]",
    "an option of another component": "projector: {name: mlp, factor: 2}",
    "an unknown name": "projector: pixel_shufle",
    "an unknown name with options": "projector: {name: pixel_shufle, factor: 2}",
    "an unknown origin": "projector: 'nope:pixel_shuffle'",
    "an unknown origin with options": "projector: {name: 'nope:pixel_shuffle', factor: 2}",
    "an unknown origin of a dataset": "data: {train: [{name: 'nope:shapes'}]}",
    "an unknown origin of a dataset alone": "data: {train: ['nope:shapes']}",
    "an origin that is no whole module": "projector: 'nanovlm_pluginsxpixel_shuffle:pixel_shuffle'",
    "a misspelt option beside an origin": "projector: {name: 'nanovlm:pixel_shuffle', facter: 2}",
    "a misspelt option beside a dataset's origin": "data: {train: [{name: 'nanovlm:shapes', train_sise: 2}]}",
    "an option of another component beside an origin": "projector: {name: 'nanovlm:mlp', factor: 2}",
    "an origin of a component that needs options": "data: {train: ['nanovlm:jsonl']}",
    "an unknown dataset": "data: {train: [shape]}",
    "an unknown tracker": "trackers: [consol]",
    "a component of another kind": "projector: siglip",
    "a word for a number": "seed: one",
    "true for a number": "seed: true",
    "half a number": "seed: 1.5",
    "a word that is none of the choices": "device: gpu",
    "too small a number": "training: {samples_per_step: 0}",
    "too large a number": "training: {warmup: 1.5}",
    "a wrong value of an option": "projector: {name: pixel_shuffle, factor: two}",
    "a wrong value of an inherited option": "projector: {factor: two}",
    "a negative rate for all": "training: {learning_rate: -1}",
    "two budgets": "training: {steps: 3, epochs: 1}",
    "a number for a section": "training: 3",
    "a number for a component": "projector: 7",
    "nothing for a component": "projector: null",
    "one entry for a list": "data: {train: shapes}",
    "an empty list": "data: {train: []}",
    "an entry without a name": "benchmarks: [{limit: 3}]",
    "too short a list": "training: {betas: [0.9]}",
    "a list for extends": "extends: [quickstart.yaml]",
}


def read(text: str, folder: Path) -> None:
    """As `nanovlm train` reads a file that says this beside what it inherits."""
    file = folder / "mine.yaml"
    base = "" if text.startswith("extends") else f"extends: {FOLDER}/quickstart.yaml\n"
    file.write_text(base + text, encoding="utf-8")
    Recipe.of(load_experiment(file), REGISTRIES, resolve=False)


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT)
def test_what_the_reader_takes_is_valid(text, tmp_path):
    read(text, tmp_path)
    assert errors(parse_yaml(text, "")) == []


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_the_reader_refuses_is_not_valid(text, tmp_path):
    with pytest.raises(NanoVLMError):
        read(text, tmp_path)
    assert errors(parse_yaml(text, "")) != []


ASKED = "baseline: {projector: mlp}"
WRONG_QUESTIONS = {
    "a misspelt key": f"{{axis: {{projector: [mlp, pixel_shuffle]}}, {ASKED}}}",
    "an unknown component on an axis": f"{{axes: {{projector: [mlp, pixel_shufle]}}, {ASKED}}}",
    "a wrong option on an axis": f"{{axes: {{projector: [mlp, {{name: resampler, factor: 2}}]}}, {ASKED}}}",
    "an unknown component of a variant": "{variants: {a: {projector: mpl}, b: {}}, baseline: b}",
    "one value for an axis": f"{{axes: {{projector: mlp}}, {ASKED}}}",
    "no values": "{axes: {projector.factor: []}, baseline: {projector.factor: 2}}",
    "a word for what is held equal": f"{{axes: {{projector: [mlp, pixel_shuffle]}}, {ASKED}, match: sample}}",
    "no seeds": f"{{axes: {{projector: [mlp, pixel_shuffle]}}, {ASKED}, seeds: []}}",
    "a number for the baseline": "{axes: {projector: [mlp, pixel_shuffle]}, baseline: 3}",
}
RIGHT_QUESTIONS = {
    "components": f"{{axes: {{projector: [mlp, {{name: pixel_shuffle, factor: 4}}]}}, {ASKED}}}",
    "options": "{axes: {projector.factor: [1, 2], seeds_of_a_kind: {a: {data.seed: 1}}}, "
    "baseline: {projector.factor: 2, seeds_of_a_kind: a}}",
    "variants": "{variants: {a: {projector: mlp}, b: {}}, baseline: b, match: none}",
}


def ask(question: str, folder: Path) -> None:
    file = folder / "mine.yaml"
    file.write_text(f"extends: {FOLDER}/quickstart.yaml\nablate: {question}", encoding="utf-8")
    plan_ablation(load_ablation(file), REGISTRIES)


@pytest.mark.parametrize("question", WRONG_QUESTIONS.values(), ids=WRONG_QUESTIONS)
def test_a_question_that_the_reader_refuses_is_not_valid(question, tmp_path):
    with pytest.raises(NanoVLMError):
        ask(question, tmp_path)
    assert errors(parse_yaml(f"ablate: {question}", "")) != []


@pytest.mark.parametrize("question", RIGHT_QUESTIONS.values(), ids=RIGHT_QUESTIONS)
def test_a_question_that_the_reader_takes_is_valid(question, tmp_path):
    ask(question, tmp_path)
    assert errors(parse_yaml(f"ablate: {question}", "")) == []


def test_an_ablation_that_extends_another_needs_no_baseline():
    assert errors({"extends": "other.yaml", "ablate": {"seeds": [0]}}) == []


def test_a_plugin_given_by_path_and_an_installed_one_are_described(tmp_path, monkeypatch):
    site = Site(tmp_path, monkeypatch)
    site.install("their-plugins", {"their_module": plugin("sum")})
    schema = json.loads(nanovlm("schema", "--plugin", Path(__file__).parent / "cli" / "rival_plugin.py").out)
    assert errors({"projector": {"name": "sum", "factor": 3}}, schema) == []
    assert errors({"projector": {"name": "shapes", "needed": 3, "inner": {"depth": 1}}}, schema) == []
    assert errors({"projector": {"name": "shapes", "needed": 3, "inner": {"deph": 1}}}, schema) != []
    assert errors({"projector": {"name": "sum"}}, json.loads(nanovlm("schema", "--defaults").out)) != []
    site.forget()


def test_of_two_plugins_that_claim_a_name_each_is_spelled_with_its_origin(tmp_path, monkeypatch):
    site = Site(tmp_path, monkeypatch)
    site.install("their-plugins", {"their_module": plugin("pixel_shuffle")})
    schema = experiment_schema(load_plugins())
    assert errors({"projector": "pixel_shuffle"}, schema) != []
    assert errors({"projector": {"name": "pixel_shuffle"}}, schema) != []
    names = schema["definitions"]["projector"]["anyOf"][-2]["enum"]
    assert names == ["average_pool", "mlp", "nanovlm:pixel_shuffle", "their-plugins:pixel_shuffle", "resampler"]
    for origin in ("their-plugins", "their_module", "nanovlm", "nanovlm_plugins.pixel_shuffle"):
        assert errors({"projector": f"{origin}:pixel_shuffle"}, schema) == []
        assert errors({"projector": {"name": f"{origin}:pixel_shuffle", "factor": 2}}, schema) == []
    assert errors({"projector": {"name": "theirs:pixel_shuffle"}}, schema) != []
    site.forget()


def test_an_origin_that_two_have_chooses_none_of_them_and_a_files_path_does(tmp_path):
    files = [tmp_path / folder / "mine.py" for folder in ("a+b", "c")]
    for file in files:
        file.parent.mkdir()
        file.write_text(plugin("sum"))
    schema = experiment_schema(load_plugins([str(file) for file in files]))
    assert errors({"projector": "mine:sum"}, schema) != []
    for file in files:
        assert errors({"projector": {"name": f"{file}:sum", "factor": 2}}, schema) == []
        assert errors({"projector": f"{file}:sum"}, schema) == []


ODD = """
from collections.abc import Callable
from typing import Annotated, Any, Self
from pydantic import Field
from nanovlm import ComponentConfig, hookimpl
from nanovlm.components import Schema

class Tree(Schema):
    depth: int
    below: list["Tree"] = []

class Odd:
    class Config(ComponentConfig):
        call: Callable[[int], int] = abs
        tree: Tree = Tree(depth=1)
        pair: tuple[int, str] = (1, "a")
        limit_of: float = float("inf")
        anything: Any = None

@hookimpl
def register_projectors(register):
    register("odd+one", Odd)
"""


EASY = """
from typing import Annotated
from pydantic import BeforeValidator, field_validator
from nanovlm import ComponentConfig, hookimpl

class Easy:
    class Config(ComponentConfig):
        names: Annotated[list[str], BeforeValidator(lambda value: value.split("+"))] = ["a"]
        told: Annotated[int, BeforeValidator(int, json_schema_input_type=int | str)] = 1
        strict: int = 1

        @field_validator("names", mode="before")
        @classmethod
        def _any(cls, value):
            return value

@hookimpl
def register_projectors(register):
    register("easy", Easy)
"""


def test_an_option_that_is_changed_before_it_is_checked_may_be_anything_or_what_it_says(tmp_path):
    file = tmp_path / "easy.py"
    file.write_text(EASY)
    schema = experiment_schema(load_plugins([str(file)]))
    for options, is_valid in (({"names": "a+b"}, True), ({"told": "3"}, True), ({"told": []}, False)):
        assert (errors({"projector": {"name": "easy", **options}}, schema) == []) == is_valid
    assert errors({"projector": {"name": "easy", "strict": "3"}}, schema) != []
    assert errors({"data": {"train": [{"name": "the_cauldron", "source": "tiny", "subsets": "ai2d"}]}}) == []


def test_options_that_json_does_not_have_stop_nobody(tmp_path):
    file = tmp_path / "odd.py"
    file.write_text(ODD)
    schema = experiment_schema(load_plugins([str(file)]))
    Draft7Validator.check_schema(schema)
    json.dumps(schema, allow_nan=False)
    choice = {"name": "odd+one", "call": 3, "tree": {"depth": 1, "below": [{"depth": 2}]}, "pair": [1, "a"]}
    assert errors({"projector": choice}, schema) == []
    assert errors({"projector": choice | {"pair": ["a", "a"]}}, schema) != []
    assert errors({"projector": choice | {"name": "odd:odd+one"}}, schema) == []
    assert errors({"projector": "odd:oddone"}, schema) != []
