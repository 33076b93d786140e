"""A benchmark that asks about samples of the training data says so, and how many: nothing leaks in silence."""

import json

import pytest
from tiny import tiny_experiment

from nanovlm import load_plugins, resume, train
from nanovlm.blueprint import Recipe
from nanovlm.cli.evaluate import described
from nanovlm.data.mixture import is_held_out
from nanovlm.training.launch import train_recipe

NUMBERS = """
from PIL import Image
from nanovlm import Benchmark, ComponentConfig, Sample, Turn, hookimpl

class Numbers(Benchmark):
    class Config(ComponentConfig):
        test_share: float = 0.2
        streamed: bool = False

    def __init__(self, config, split):
        tested = round(20 * config.test_share)
        self.numbers = range(tested) if split == "test" else range(tested, 20)
        self.streaming = config.streamed and split == "train"

    def __len__(self):
        return len(self.numbers)

    def id(self, index):
        return f"number-{self.numbers[index]}"

    def __getitem__(self, index):
        number = self.numbers[index]
        return Sample([Image.new("L", (16, 16), number)], [Turn("Which?", str(number))], self.id(index))

    def stream(self):
        from nanovlm.data.dataset import Row
        return (Row(self.id(i), i) for i in range(len(self)))

    def sample(self, row):
        return self[row.content]

class Other(Numbers):
    pass

@hookimpl
def register_datasets(register):
    register("numbers", Numbers)
    register("other_numbers", Other)

class Listener:
    class Config(ComponentConfig):
        pass

    def __init__(self, config, run):
        self.run = run

    def started(self, facts):
        (self.run.folder / "notes").write_text("\\n".join(facts["notes"]))

    def step_finished(self, metrics):
        pass

    evaluated = failed = finished = lambda self, *_: None

@hookimpl
def register_trackers(register):
    register("listener", Listener)
"""


@pytest.fixture
def run(tmp_path):
    """Trains on all numbers but a few, and asks about others; the summary of each benchmark, and the notes."""
    file = tmp_path / "numbers.py"
    file.write_text(NUMBERS)
    registries = load_plugins([str(file)])

    def trained(train_on: str, *asked: str, **settings: object):
        overrides = [f"data.train=[{train_on}]", f"benchmarks=[{', '.join(asked)}]", "trackers=[listener]"]
        overrides += [f"{key}={value}" for key, value in settings.items()]
        train_recipe(Recipe.of(tiny_experiment(*overrides), registries), tmp_path / "run")
        found = json.loads((tmp_path / "run" / "summary.json").read_text())["benchmarks"]
        return found, (tmp_path / "run" / "notes").read_text().splitlines()

    return trained


def test_questions_about_what_is_trained_on_are_counted_and_told(run):
    found, notes = run("{name: numbers, test_share: 0.2}", "{name: numbers, test_share: 0.9}")
    assert found["numbers"]["trained_on"] == 14  # numbers 4 to 17
    assert (
        "numbers: 14 of 18 questions have the id of a sample that is trained on; "
        "its accuracy will say little about new ones"
    ) in notes


def test_each_benchmark_is_counted_by_itself_and_only_what_is_asked(run):
    asked = ("{name: numbers, test_share: 0.9, limit: 6}", "numbers")
    found, notes = run("{name: numbers, test_share: 0.2}", *asked)
    assert found["numbers"]["trained_on"] == 2
    assert "trained_on" not in found["numbers-2"]
    assert [note.partition(";")[0] for note in notes if "trained on" in note] == [
        "numbers: 2 of 6 questions have the id of a sample that is trained on"
    ]


def test_what_is_held_out_is_not_trained_on(run):
    found, _ = run("{name: numbers, test_share: 0}", "{name: numbers, test_share: 1}", **{"data.validation.share": 0.3})
    held_out = sum(is_held_out(f"number-{number}", 0.3, 0) for number in range(20))
    assert 0 < held_out < 20
    assert found["numbers"]["trained_on"] == 20 - held_out


@pytest.mark.parametrize(
    ("train_on", "asked"),
    [
        ("{name: numbers, test_share: 0.2}", "{name: other_numbers, test_share: 0.9}"),
        ("{name: numbers, test_share: 0.2, streamed: true}", "{name: numbers, test_share: 0.9}"),
    ],
    ids=["another component", "a stream"],
)
def test_nothing_is_said_where_nothing_is_known(run, train_on, asked):
    found, notes = run(train_on, asked)
    assert [summary for summary in found.values() if "trained_on" in summary] == []
    assert not any("trained on" in note for note in notes)


def test_a_run_that_goes_on_says_it_again(tmp_path):
    file = tmp_path / "numbers.py"
    file.write_text(NUMBERS)
    changes = ("data.train=[{name: numbers, test_share: 0}]", "benchmarks=[{name: numbers, test_share: 0.5}]")
    chosen = tiny_experiment(*changes, "trackers=[listener]", "checkpoints.every=1")
    train(chosen, tmp_path / "run", [str(file)])
    summary = resume(tmp_path / "run", ["training.steps=4"])
    assert summary["benchmarks"]["numbers"]["trained_on"] == 10
    assert "numbers: 10 of 10 questions have the id of a sample" in (tmp_path / "run" / "notes").read_text()


def test_of_the_quickstart_nothing_is_trained_on(tmp_path):
    summary = train(tiny_experiment(), tmp_path / "run")
    assert "trained_on" not in summary["benchmarks"]["shapes"]


def test_it_stands_below_the_accuracy():
    summary = {
        "accuracy": 0.5,
        "ci95": [0.2, 0.8],
        "questions": 10,
        "controls": {},
        "categories": {},
        "skipped": {},
        "trained_on": 4,
    }
    assert described("numbers", summary)[1] == "  4 of 10 questions have the id of a sample that is trained on"
