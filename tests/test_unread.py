"""What is written and changes nothing: an error where nobody can have meant it, and nowhere else."""

import pytest
from test_experiment import BASE

from nanovlm import ConfigError, load_experiment
from nanovlm.unread import unread


@pytest.fixture
def load(tmp_path):
    def load(more: str, *overrides: str):
        (tmp_path / "base.yaml").write_text(BASE)
        (tmp_path / "own.yaml").write_text(f"extends: base.yaml\n{more}")
        return load_experiment(tmp_path / "own.yaml", overrides)

    return load


@pytest.fixture
def error(load):
    def error(more: str, *overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(more, *overrides)
        return str(caught.value)

    return error


WSD, SHARE, RATE = "training.schedule=warmup_stable_decay", "data.validation.share", "training.learning_rate.projector"
CASES = [  # what switches it off, what is then not read, why, and what would have it read
    ("training.schedule=cosine", "training.decay=0.5", "training.schedule is cosine", WSD),
    ("training.schedule=constant", "training.final_learning_rate=0.5", "training.schedule is constant", WSD),
    (f"{SHARE}=0", "data.validation.every=5", f"{SHARE} is 0", f"{SHARE}=0.01"),
    (f"{SHARE}=0", "data.validation.limit=5", f"{SHARE} is 0", f"{SHARE}=0.01"),
    (f"{RATE}=0", "training.frozen_until_step.projector=5", f"{RATE} is 0", f"a rate by {RATE}=..."),
    (f"{RATE}=0", "training.weight_decay.projector=5", f"{RATE} is 0", f"a rate by {RATE}=..."),
]

every_case = pytest.mark.parametrize(("off", "setting", "reason", "fix"), CASES)


def nested(override: str) -> str:
    """The override as a file says it."""
    path, _, value = override.partition("=")
    *above, key = path.split(".")
    return "".join(f"{'  ' * i}{word}:\n" for i, word in enumerate(above)) + f"{'  ' * len(above)}{key}: {value}\n"


@every_case
def test_an_override_that_changes_nothing_is_an_error(error, off, setting, reason, fix):
    expected = f"override {setting}: nothing reads it, because {reason}; leave it out, or set {fix}"
    assert error("", off, setting) == error("", setting, off) == error(nested(off), setting) == expected


@every_case
def test_a_file_may_have_what_is_switched_off(load, off, setting, reason, fix):
    """Written into a file for another setting, or by a run that writes out everything."""
    assert setting.partition("=")[0] in {each.key for each in unread(load(nested(setting), off))}


@every_case
def test_the_same_setting_is_read_otherwise(load, off, setting, reason, fix):
    on = [WSD] if fix == WSD else []
    assert setting.partition("=")[0] not in {each.key for each in unread(load("", *on, setting))}


def test_what_a_default_switches_off_is_an_error_in_a_file_too(error, tmp_path):
    assert error("training:\n  decay: 0.5") == (
        "training.decay=0.5: nothing reads it, because training.schedule is cosine; leave it out, or set "
        f"training.schedule=warmup_stable_decay ({tmp_path / 'own.yaml'}, line 3)"
    )


def test_nought_is_written_in_vain_by_intention(load):
    load("", "data.validation.share=0", "data.validation.every=0")
    load("", f"{RATE}=0", "training.weight_decay.projector=0")


def test_a_number_for_all_components_is_read_by_those_that_are_trained(load):
    load("", "training.learning_rate.projector=0", "training.weight_decay=0.1")
    load(
        "", "training.weight_decay=0.1", "training.learning_rate.projector=0", "training.weight_decay.vision_encoder=0"
    )


@pytest.mark.parametrize(
    ("first", "second", "key"),
    [
        ("projector.factor=3", "projector={name: other}", "projector.factor"),
        ("training={steps: 3}", "training.samples=4", "training.steps"),
        ("data.train.0.size=4", "data.train.0={name: other}", "data.train.0.size"),
    ],
)
def test_an_override_that_another_one_drops_is_an_error(error, first, second, key):
    assert error("", first, second) == (
        f"override {first}: nothing reads {key}, because override {second} drops it; leave one of them out"
    )


def test_what_files_drop_is_no_error(load):
    assert load("projector: other", "language_decoder=other").projector.options == {}


def test_several_are_said_at_once(error):
    message = error("", "training.decay=0.5", "data.validation.share=0", "data.validation.every=3")
    assert [line[:30] for line in message.splitlines()] == [
        "- override training.decay=0.5:",
        "- override data.validation.eve",
    ]
