"""What an experiment file may not say, and what its author is told."""

import pytest
from test_experiment import BASE

from nanovlm import ConfigError, load_experiment
from nanovlm.blueprint import Recipe


@pytest.fixture
def error_of(tmp_path):
    """The message about this text as an experiment file, with overrides."""

    def error_of(text: str, *overrides: str) -> str:
        file = tmp_path / "base.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_experiment(file, overrides)
        return str(caught.value)

    return error_of


@pytest.fixture
def error(error_of):
    return lambda *overrides: error_of(BASE, *overrides)


@pytest.mark.parametrize(
    ("training", "what"),
    [
        ("{steps: 1, epochs: 1}", "steps and epochs are set"),
        ("{steps: 1, samples: 1, epochs: 1}", "steps and samples and epochs are set"),
        ("{warmup: 0.5}", "none is set"),
        ("{steps: 0}", "none is set"),
    ],
)
def test_a_file_has_exactly_one_budget(error_of, training, what):
    text = BASE[: BASE.index("training:")] + f"training: {training}"
    message, _, place = error_of(text).rpartition(" (")
    assert message == f"training: exactly one budget out of steps, samples, epochs, flops must be set; {what}"
    assert place.endswith("base.yaml, line 9)")


@pytest.mark.parametrize(
    ("override", "where", "misspelt", "right", "known"),
    [
        (
            "trianing.steps=3",
            "experiment",
            "trianing",
            "training",
            "benchmarks, checkpoints, data, device, extends, language_decoder",
        ),
        ("extend=base.yaml", "experiment", "extend", "extends", "data, device, extends"),
        ("training.step=3", "training", "step", "steps", "epochs, final_learning_rate"),
        ("data.validation.shares=0", "data.validation", "shares", "share", "every, limit, share"),
        (
            "training.learning_rate.projektor=0",
            "training.learning_rate",
            "projektor",
            "projector",
            "language_decoder, projector, vision_encoder",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_and_the_known(error, override, where, misspelt, right, known):
    first, second = error(override).splitlines()
    assert first == f"{where}: unknown option {misspelt!r}. Did you mean {right!r}?"
    assert second.startswith("  Known here: ")
    assert known in second


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("seed=one", "seed='one': input should be a valid integer"),
        ("seed=true", "seed=True: input should be a valid integer"),
        ("seed=1.5", "seed=1.5: input should be a valid integer"),
        ("training.samples=1e6", "training.samples=1000000.0: input should be a whole number, written 1000000"),
        ("training.samples=1e300", "training.samples=1e+300: input should be a valid integer"),
        ("training.warmup=true", "training.warmup=True: input should be a valid number"),
        ("training.warmup=1.5", "training.warmup=1.5: input should be less than or equal to 1"),
        ("training.samples_per_step=0", "training.samples_per_step=0: input should be greater than or equal to 1"),
        ("training.learning_rate.projector=-1", "training.learning_rate.projector=-1: input should be greater than"),
        ("training.epochs=.inf", "training.epochs=inf: input should be a finite number"),
        ("training.epochs=.nan", "training.epochs=nan: input should be a finite number"),
        ("training.betas=[0.9]", "training.betas=[0.9]: list should have at least 2 items, not 1"),
        ("training=3", "training=3: input should be a mapping of keys to values"),
        ("data.train=[]", "data.train=[]: list should have at least 1 item, not 0"),
        ("data.train.0.weight=0", "data.train.0.weight=0: input should be greater than 0"),
        ("data.train.1=7", "data.train.1: a component is its name, or a mapping with its name and options, not 7"),
        ("data.workers=many", "data.workers='many': input should be 'auto' or input should be a valid integer"),
        ("data.workers=-1", "data.workers=-1: input should be 'auto' or input should be greater than or equal to 0"),
        ("benchmarks.0.every=x", "benchmarks.0.every='x': input should be a valid integer"),
        ("device=gpu", "device='gpu': input should be 'auto', 'cuda', 'mps' or 'cpu'"),
        ("projector=null", "projector: a component is its name, or a mapping with its name and options, not None"),
        ("trackers=[{width: 3}]", "trackers.0.name is missing"),
        ("trackers=console", "trackers='console': input should be a valid list"),
        ("name=3", "name=3: input should be a valid string"),
    ],
)
def test_a_wrong_value_is_shown_with_its_path(error, override, what):
    assert error(override).startswith(what)


def test_a_wrong_value_is_explained_by_the_options_own_words(error):
    assert error("training.warmup=2").splitlines()[1].startswith("  warmup: The share of the steps over which")
    assert error("data.train.0.weight=0").splitlines()[1].startswith("  weight: How often an epoch passes")


def test_a_key_must_be_a_word(error):
    assert error("data={1: 2}") == "data: the key 1 is no word: put it in quotes"


def test_an_override_extends_nothing(error):
    assert error("extends=base.yaml") == (
        "override extends: a file is extended at its own top; write one that extends both"
    )


def test_everything_that_is_missing_is_named_at_once(error_of):
    message = error_of("seed: x")
    wrong = ("vision_encoder is missing", "projector is missing", "data is missing", "training is missing", "seed='x'")
    assert [part in message for part in wrong] == [True] * len(wrong)
    assert all(line.startswith(("- ", "  ")) for line in message.splitlines())


@pytest.mark.parametrize(
    ("more", "message", "line"),
    [
        ("training:\n  steps: 3\n  step: 3", "training: unknown option 'step'. Did you mean 'steps'?", 4),
        ("\ntrianing: {}", "experiment: unknown option 'trianing'. Did you mean 'training'?", 3),
        ("seed:\n  one", "seed='one': input should be a valid integer", 2),
        ("data: {validation: {share: 2}}", "data.validation.share=2: input should be less than or equal to 1", 2),
        (
            "data:\n  train:\n  - a\n  - {name: b,\n     weight: 0}",
            "data.train.1.weight=0: input should be greater than 0",
            6,
        ),
        ("trackers:\n- {width: 3}", "trackers.0.name is missing", 3),
        ("data: {1: 2}", "data: the key 1 is no word: put it in quotes", 2),
        (
            "training: {learning_rate: -1}",
            "training.learning_rate.projector=-1: input should be greater than or equal to 0",
            2,
        ),
    ],
)
def test_what_is_wrong_in_a_file_has_its_line(tmp_path, more, message, line):
    """Also in a long chain of files: it is the one that wrote it."""
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "wrong.yaml").write_text(f"extends: base.yaml\n{more}")
    (tmp_path / "last.yaml").write_text("extends: wrong.yaml\nbenchmarks: []")
    with pytest.raises(ConfigError) as caught:
        load_experiment(tmp_path / "last.yaml", ["training.warmup=0"])
    first = str(caught.value).splitlines()[0].removeprefix("- ")
    assert first == f"{message} ({tmp_path / 'wrong.yaml'}, line {line})"


@pytest.mark.parametrize(
    ("projector", "message"),
    [
        ("name: pixel_shuffle\n  facter: 3", "projector: unknown option 'facter'. Did you mean 'factor'?"),
        ("name: pixel_shuffle\n  factor: x", "projector.factor='x': input should be a valid integer"),
        ("weights: a/model\n  facter: 3", "projector: unknown option 'facter'. Did you mean 'factor'?"),
    ],
)
def test_a_components_option_has_its_line_too(tmp_path, registries, projector, message):
    file = tmp_path / "own.yaml"
    file.write_text(f"extends: quickstart\nprojector:\n  {projector}")
    with pytest.raises(ConfigError) as caught:
        Recipe.of(load_experiment(file), registries)
    assert str(caught.value).startswith(message)
    assert str(caught.value).splitlines()[0].endswith(f" ({file}, line 4)")


def test_an_override_needs_no_place(tmp_path, registries):
    with pytest.raises(ConfigError) as caught:
        Recipe.of(load_experiment("quickstart", ["projector.facter=3"]), registries)
    assert str(caught.value).splitlines()[0] == "projector: unknown option 'facter'. Did you mean 'factor'?"
