"""What an experiment file may not say, and what its author is told."""

import pytest
from test_experiment import BASE

from nanovlm import ConfigError, load_experiment


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
    message = error_of(text)
    assert message == f"training: exactly one budget out of steps, samples, epochs, flops must be set; {what}"


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
