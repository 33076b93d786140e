import pytest

from nanovlm import ConfigError, load_experiment
from nanovlm.merging import merge

BASE = """
vision_encoder: {name: eye, width: 8}
projector: {name: bridge, factor: 2, bias: true}
language_decoder: mouth
data:
  train: [{name: pictures, weight: 2, size: 3}, words]
  validation: {share: 0.1, every: 5}
benchmarks: [quiz]
training: {epochs: 2, warmup: 0.1, learning_rate: {projector: 1e-2}}
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "base.yaml"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return write


@pytest.fixture
def load(write):
    """BASE with overrides, or with ``more`` that extends it."""

    def load(*overrides: str, more: str = ""):
        file = write(BASE)
        return load_experiment(write(f"extends: base.yaml\n{more}", "own.yaml") if more else file, overrides)

    return load


@pytest.fixture
def error(load):
    def error(*overrides: str, more: str = "") -> str:
        with pytest.raises(ConfigError) as caught:
            load(*overrides, more=more)
        return str(caught.value)

    return error


def error_of(file, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_experiment(file, overrides)
    return str(caught.value)


def test_a_component_is_its_name_and_its_options(load):
    experiment = load()
    assert (experiment.projector.name, experiment.projector.options) == ("bridge", {"factor": 2, "bias": True})
    assert (experiment.language_decoder.name, experiment.language_decoder.options) == ("mouth", {})


def test_a_list_takes_names_and_mappings(load):
    first, second = load().data.train
    assert (first.name, first.weight, first.options) == ("pictures", 2.0, {"size": 3})
    assert (second.name, second.weight, second.options) == ("words", 1.0, {})
    assert (load().benchmarks[0].name, load().benchmarks[0].every) == ("quiz", 0)


def test_a_run_is_named_after_its_own_file(load, write):
    assert load().name == "base"
    assert load(more="seed: 1").name == "own"
    assert load_experiment(write(BASE + "name: mine", "other.yaml")).name == "mine"


def test_a_name_is_not_inherited(write):
    write(BASE + "name: mine")
    assert load_experiment(write("extends: base.yaml", "own.yaml")).name == "own"
    assert load_experiment(write("extends: base.yaml\nname: yours", "own.yaml")).name == "yours"


def test_a_name_is_overridden_without_touching_anything_else(load):
    assert load("name=first", "name=second").name == "second"
    assert load("name=first").model_dump(exclude={"name"}) == load().model_dump(exclude={"name"})


@pytest.mark.parametrize("name", ["a/b", "..", "../a", "''", "a\\b"])
def test_a_name_must_do_for_a_folder(error, name):
    assert error(f"name={name}").startswith("name: a run's name is also its folder's")


def test_extends_merges_mappings(load):
    experiment = load(more="projector: {factor: 4}\ntraining: {learning_rate: {vision_encoder: 0}}")
    assert experiment.projector.options == {"factor": 4, "bias": True}
    assert experiment.training.learning_rate.vision_encoder == 0
    assert experiment.training.learning_rate.projector == 1e-2
    assert experiment.training.warmup == 0.1


@pytest.mark.parametrize("key", ["learning_rate", "weight_decay"])
def test_one_number_for_all_components_is_kept_for_those_that_are_not_named(load, key):
    """An ablation that freezes one component must not give the others another rate without a word."""
    expected = {"vision_encoder": 0.0, "projector": 5e-4, "language_decoder": 5e-4}
    overrides = f"training.{key}=5e-4", f"training.{key}.vision_encoder=0"
    assert getattr(load(*overrides).training, key).model_dump() == expected
    merged = merge({"training": {key: 5e-4}}, {"training": {key: {"vision_encoder": 0}}})
    assert merged["training"][key] == expected


def test_extends_replaces_lists(load):
    train = load(more="data: {train: [{name: pictures, size: 4}]}").data.train
    assert [(entry.name, entry.weight, entry.options) for entry in train] == [("pictures", 1.0, {"size": 4})]
    assert load(more="benchmarks: []").benchmarks == []


@pytest.mark.parametrize("projector", ["{name: other}", "other"])
def test_a_new_component_drops_the_old_ones_options(load, projector):
    chosen = load(more=f"projector: {projector}").projector
    assert (chosen.name, chosen.options) == ("other", {})


@pytest.mark.parametrize("projector", ["{name: bridge, factor: 4}", "{factor: 4}"])
def test_the_same_component_keeps_them(load, projector):
    assert load(more=f"projector: {projector}").projector.options == {"factor": 4, "bias": True}


def test_the_same_bare_name_keeps_the_options(load):
    assert load(more="projector: bridge").projector.options == {"factor": 2, "bias": True}


def test_a_bare_name_is_extended_by_options(load):
    decoder = load(more="language_decoder: {width: 4}").language_decoder
    assert (decoder.name, decoder.options) == ("mouth", {"width": 4})


@pytest.mark.parametrize(("budget", "value"), [("steps", 7), ("samples", 70), ("epochs", 0.5)])
def test_a_new_budget_removes_the_other(load, budget, value):
    nothing = {"steps": 0, "samples": 0, "epochs": 0}
    for training in (
        load(more=f"training: {{{budget}: {value}}}").training,
        load(f"training.{budget}={value}").training,
    ):
        assert {key: getattr(training, key) for key in nothing} == nothing | {budget: value}
        assert training.warmup == 0.1


def test_only_the_training_has_budgets(load):
    """A component may have an option that is called like one."""
    more = "projector: {name: bridge, steps: 3}"
    assert load("projector.samples=4", more=more).projector.options["steps"] == 3
    assert merge({"data": {"steps": 1}}, {"data": {"samples": 2}}) == {"data": {"steps": 1, "samples": 2}}


def test_files_extend_one_another_in_a_chain(write):
    write(BASE, "recipes/base.yaml")
    write("extends: ../recipes/base.yaml\nseed: 1\nprojector: {factor: 3}", "variants/one.yaml")
    last = write("extends: variants/one.yaml\nprojector: {factor: 4}", "last.yaml")
    experiment = load_experiment(last)
    assert (experiment.name, experiment.seed) == ("last", 1)
    assert experiment.projector.options == {"factor": 4, "bias": True}
    assert experiment.vision_encoder.options == {"width": 8}


def test_an_absolute_path_is_extended_too(write, tmp_path):
    base = write(BASE)
    assert load_experiment(write(f"extends: {base}", "elsewhere/own.yaml")) == load_experiment(base, ["name=own"])


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c")])
def test_a_circle_is_an_error_that_shows_it(write, names):
    for name, base in zip(names, (*names[1:], names[0]), strict=True):
        write(f"extends: {base}.yaml", f"{name}.yaml")
    circle = " -> ".join(f"{name}.yaml" for name in ("start", *names, names[0]))
    assert f"extends goes in a circle: {circle}" in error_of(write(f"extends: {names[0]}.yaml", "start.yaml"))


def test_a_missing_base_names_both_files(write, tmp_path):
    write(BASE)
    message = error_of(write("extends: bases.yaml", "own.yaml"))
    assert message.startswith(f"{tmp_path / 'own.yaml'}: extends='bases.yaml', relative to this file: ")
    assert f"{tmp_path / 'bases.yaml'}: there is no such file" in message
    assert f"Did you mean '{tmp_path / 'base.yaml'}'?" in message


@pytest.mark.parametrize("base", ["[base.yaml]", "3", "{a: b}", "true"])
def test_extends_is_one_path(write, base):
    message = error_of(write(f"extends: {base}", "own.yaml"))
    assert "own.yaml: extends=" in message
    assert "must be the path of one YAML file, relative to this one" in message


def test_a_base_that_is_not_yaml_is_named_with_its_line(write, tmp_path):
    write("seed: 1\nprojector: [", "base.yaml")
    assert f"{tmp_path / 'base.yaml'}, line 2" in error_of(write("extends: base.yaml", "own.yaml"))


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("projector.factor=4", lambda e: e.projector.options == {"factor": 4, "bias": True}),
        ("projector={factor: 4}", lambda e: e.projector.options == {"factor": 4, "bias": True}),
        ("projector.deep.er=1e-4", lambda e: e.projector.options.get("deep") == {"er": 1e-4}),
        ("projector.words=a=b", lambda e: e.projector.options.get("words") == "a=b"),
        ("projector.words=", lambda e: e.projector.options.get("words", 0) is None),
        ("projector=other", lambda e: (e.projector.name, e.projector.options) == ("other", {})),
        ("projector.name=other", lambda e: (e.projector.name, e.projector.options) == ("other", {})),
        ("language_decoder.width=4", lambda e: e.language_decoder.options == {"width": 4}),
        ("benchmarks.0.every=500", lambda e: (e.benchmarks[0].name, e.benchmarks[0].every) == ("quiz", 500)),
        ("data.train.0.size=4", lambda e: (e.data.train[0].weight, e.data.train[0].options) == (2, {"size": 4})),
        ("data.train.1=other", lambda e: [entry.name for entry in e.data.train] == ["pictures", "other"]),
        ("data.train=[other]", lambda e: [entry.name for entry in e.data.train] == ["other"]),
        ("training.learning_rate.projector=0", lambda e: e.training.learning_rate.projector == 0),
        ("training.betas=[0.9, 0.95]", lambda e: e.training.betas == [0.9, 0.95]),
        ("trackers=[]", lambda e: e.trackers == []),
        ("seed=0x10", lambda e: e.seed == 16),
    ],
)
def test_an_override_sets_one_thing(load, override, value):
    assert not value(load())
    assert value(load(override))


def test_an_override_leaves_the_rest(load):
    assert load("seed=3").model_dump(exclude={"seed"}) == load().model_dump(exclude={"seed"})


def test_the_last_override_of_a_key_counts(load):
    assert load("projector.factor=3", "projector.factor=4").projector.options["factor"] == 4


@pytest.mark.parametrize("name", ["projector=other", "projector.name=other"])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_name_and_its_options_come_in_any_order(load, name, swapped):
    overrides = [name, "projector.factor=9"]
    chosen = load(*(reversed(overrides) if swapped else overrides)).projector
    assert (chosen.name, chosen.options) == ("other", {"factor": 9})


def test_the_last_of_several_names_counts(load):
    chosen = load("projector.name=other", "projector.factor=9", "projector.name=third").projector
    assert (chosen.name, chosen.options) == ("third", {"factor": 9})


def test_everything_else_happens_in_the_order_given(load):
    whole, part, name = "data.train=[a, b]", "data.train.1.weight=3", "data.train.1.name=c"

    def train(*overrides: str):
        return [(entry.name, entry.weight) for entry in load(*overrides).data.train]

    assert train(whole, part) == [("a", 1), ("b", 3)]
    assert train(part, whole) == [("a", 1), ("b", 1)]
    assert train(whole, part, name) == train(whole, name, part) == [("a", 1), ("c", 3)]


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("data.train.2.weight=3", "'2' is no entry of this list; it has entries 0 to 1, as in data.train.0.weight=..."),
        ("data.train.-1.weight=3", "'-1' is no entry of this list"),
        ("data.train.².weight=3", "'²' is no entry of this list"),
        ("benchmarks.every=3", "'every' is no entry of this list; it has entries 0 to 0, as in benchmarks.0.every=..."),
        ("trackers.0.name=x", "the list has no entries; write the whole: trackers=[...]"),
        ("trackers.0=x", "the list has no entries; write the whole: trackers=[...]"),
    ],
)
def test_an_override_of_no_entry_says_which_there_are(error, override, what):
    assert error(override).startswith(f"override {override.partition('=')[0]}: {what}")


@pytest.mark.parametrize("override", ["projector.factor", "=3", "", ".=1", "projector..factor=3", "projector.=3"])
def test_a_malformed_override_shows_the_form(error, override):
    assert error(override) == f"override {override!r}: expected dotted.key=value, for example projector.factor=4"


def test_an_override_that_is_not_yaml_is_quoted(error):
    assert error("training.betas=[1").startswith("override 'training.betas=[1', line 1, column 3: not valid YAML")


def test_two_budgets_in_overrides_are_an_error(error):
    message = error("training.steps=3", "seed=1", "training.samples=4")
    budgets = "steps, samples, epochs, flops"
    assert message == f"overrides: exactly one budget out of {budgets} must be set; samples and steps are set"


def test_a_number_needs_no_point(load):
    assert load("training.learning_rate.projector=1e-4").training.learning_rate.projector == 0.0001
    assert load("training.epochs=3").training.epochs == 3.0
