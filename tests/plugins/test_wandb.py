import json
import os
from types import SimpleNamespace

import pytest
import wandb
from PIL import Image
from tiny import tiny_experiment, tiny_recipe
from wandb_reader import RecordedRun

from nanovlm import ConfigError, Sample, Turn, load_plugins, train
from nanovlm.evaluation.evaluator import Item
from nanovlm.training.run import Run
from nanovlm.training.trainer import Trainer

TRACKED = ("trackers=[{name: wandb, project: zoo, tags: [red, green], pictures: 3}]", "data.validation.share=0.2")
FACTS = {"run": "here", "total_steps": 3, "parameters": 5}
STEP = {"step": 1, "loss": 2.5, "tokens_per_second": 100.0}


@pytest.fixture(scope="module", autouse=True)
def _nobody_is_logged_in(tmp_path_factory):
    """And nothing is read from, or written to, the home of whoever runs the tests."""
    before = os.environ.copy()
    home = tmp_path_factory.mktemp("home")
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        del os.environ[key]
    os.environ |= {f"WANDB_{kind}_DIR": str(home) for kind in ("CACHE", "CONFIG", "DATA")}
    os.environ["NETRC"] = str(home / "netrc")
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three steps, and its summary."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, train(tiny_experiment(*TRACKED, "benchmarks.0.every=2"), folder)


@pytest.fixture(scope="module")
def recorded(finished):
    return RecordedRun(finished[0] / "wandb")


@pytest.fixture
def tracker(tmp_path, registries):
    """``tracker(**options)`` watches a run that is about to start."""

    def tracker(**options):
        run = Run.create(tiny_recipe(), tmp_path / "run")
        cls = registries.trackers.find("wandb").cls
        return cls(cls.Config(**options), run)

    return tracker


class Broken:
    """A run of W&B's of which every call fails, those in ``works`` aside."""

    def __init__(self, *works: str) -> None:
        self.works, self.calls, self.summary = works, [], SimpleNamespace(update=lambda facts: self("summary"))

    def __call__(self, name: str) -> None:
        self.calls.append(name)
        if name not in self.works:
            raise ConnectionError("gone away")

    def log(self, figures, step):
        self("log")

    def finish(self, exit_code):
        self("finish")


def test_the_config_is_the_resolved_experiment(recorded, finished):
    experiment = tiny_recipe(*TRACKED, "benchmarks.0.every=2").dump()
    written = {key: value for key, value in recorded.config.items() if key not in ("_wandb", "facts")}
    assert written == json.loads(json.dumps(experiment))
    assert recorded.config["facts"]["total_steps"] == 3
    assert str(finished[0]) not in json.dumps(recorded.config)


def test_the_run_has_its_project_name_and_tags(recorded):
    run = recorded.of("run")[0]
    assert (run.project, run.display_name, list(run.tags)) == ("zoo", "quickstart-s0", ["red", "green"])


def test_the_metrics_of_every_step_are_those_of_the_log(recorded, finished):
    lines = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if line["event"] == "step"}
    assert recorded.history.keys() == steps.keys() == {1, 2, 3}
    for step, metrics in steps.items():
        for key in ("loss", "grad_norm", "tokens_per_second", "learning_rate/projector"):
            assert recorded.history[step][key] == pytest.approx(metrics[key])


def test_evaluations_stand_at_their_step(recorded, finished):
    summary = finished[1]
    shapes = summary["benchmarks"]["shapes"]
    last = recorded.history[3]
    assert last["validation_loss"] == pytest.approx(summary["validation_loss"])
    assert last["shapes/accuracy"] == pytest.approx(shapes["accuracy"])
    assert last["shapes/controls/no_image"] == pytest.approx(shapes["controls"]["no_image"])
    assert last["shapes/ci95/1"] == pytest.approx(shapes["ci95"][1])
    assert "shapes/accuracy" in recorded.history[2]
    assert "shapes/controls/no_image" not in recorded.history[2]
    assert "shapes/accuracy" not in recorded.history[1]


def test_the_summary_is_the_runs(recorded, finished):
    summary = finished[1]
    assert recorded.summary["steps"] == 3
    assert recorded.summary["benchmarks/shapes/accuracy"] == pytest.approx(summary["benchmarks"]["shapes"]["accuracy"])


def test_answers_are_shown_with_their_pictures(recorded, finished):
    folder, _ = finished
    tables = recorded.tables("answers")
    assert [len(table["data"]) for table in tables] == [3, 3]  # at steps 2 and 3, so many of the 8 as were asked for
    items = [json.loads(line) for line in (folder / "evaluation" / "shapes" / "3.jsonl").read_text().splitlines()]
    for row, item in zip(tables[-1]["data"], items, strict=False):
        shown = dict(zip(tables[-1]["columns"], row, strict=True))
        assert {key: shown[key] for key in ("id", "question", "prediction", "answer", "score", "category")} == {
            key: item[key] for key in ("id", "question", "prediction", "answer", "score", "category")
        }
        assert shown["pictures"] == 1
    contents = [entry for artifact in recorded.of("artifact") for entry in artifact.manifest.contents]
    pictures = [entry for entry in contents if entry.path.startswith("media/images/")]
    assert len(pictures) == 6
    for entry in pictures:
        assert Image.open(entry.local_path).size == (16, 16)
        assert entry.local_path.startswith(str(folder.resolve() / "wandb"))  # and so `wandb sync` finds it later


def test_it_ends_as_finished(recorded):
    assert recorded.exit_codes == [0]


def test_code_and_terminal_are_not_recorded(recorded):
    assert recorded.of("output") == recorded.of("output_raw") == []
    files = {file.name for file in recorded.folder.joinpath("files").iterdir()}
    assert files.isdisjoint({"diff.patch", "code", "output.log"})
    assert not recorded.of("run")[0].HasField("git")


def test_the_caller_keeps_his_environment(finished):
    assert "home" in os.environ["WANDB_DATA_DIR"]


def test_a_crash_ends_it_as_failed(tmp_path, monkeypatch):
    step, taken = Trainer.train_step, []

    def crash(self):
        taken.append(self.step)
        if self.step == 2:
            raise ZeroDivisionError("a bug in a plugin")
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", crash)
    with pytest.raises(ZeroDivisionError, match=r"^a bug in a plugin$"):
        train(tiny_experiment(*TRACKED), tmp_path / "run")
    recorded = RecordedRun(tmp_path / "run" / "wandb")
    assert recorded.exit_codes == [1]
    assert recorded.history.keys() == {1, 2}  # the last step, too, though metrics are told one step late
    assert taken == [0, 1, 2]


def test_the_library_may_fail_in_every_call(monkeypatch, tmp_path, capsys):
    broken = Broken()
    monkeypatch.setattr(wandb, "init", lambda **options: broken)
    summary = train(tiny_experiment(*TRACKED), tmp_path / "run")
    assert summary["steps"] == 3
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("wandb: ")]
    first = "wandb: a call failed (ConnectionError: gone away); the run goes on, and the next ones are only counted"
    assert said[1] == first
    assert broken.calls == ["log"] * 6 + ["summary", "finish"]  # 3 steps, a validation, a benchmark and its answers
    assert said[2:] == [f"wandb: 8 calls were lost; {tmp_path / 'run' / 'metrics.jsonl'} has everything"]


def test_a_lost_call_loses_no_other(monkeypatch, tracker, capsys):
    broken = Broken("finish", "summary")
    monkeypatch.setattr(wandb, "init", lambda **options: broken)
    watching = tracker()
    watching.started(FACTS)
    watching.step_finished(STEP)
    watching.failed(RuntimeError("another"))
    assert broken.calls == ["log", "finish"]
    assert "1 calls were lost" in capsys.readouterr().err


def test_a_picture_that_is_gone_by_now_stops_nothing(monkeypatch, tracker, tmp_path, capsys):
    broken = Broken("log", "finish", "summary")
    monkeypatch.setattr(wandb, "init", lambda **options: broken)
    watching = tracker()
    watching.started(FACTS)
    sample = Sample([str(tmp_path / "gone.png")], [Turn("What?", "this")], "x")
    watching.evaluated({"benchmark": "b", "step": 1}, [(sample, Item("x", "What?", "", "this", 0.0))])
    watching.finished({})
    assert "a call failed (SkipSample: picture not found)" in capsys.readouterr().err


def test_without_login_or_network_the_run_goes_on_offline(monkeypatch, tracker, capsys):
    modes, init = [], wandb.init

    def offline_only(**options):
        modes.append(options["mode"])
        if options["mode"] == "online":
            raise wandb.errors.UsageError("No API key configured.")
        return init(**options)

    monkeypatch.setattr(wandb, "init", offline_only)
    watching = tracker(mode="online")
    watching.started(FACTS)
    watching.step_finished(STEP)
    watching.finished({})
    assert modes == ["online", "offline"]
    assert RecordedRun(watching.folder / "wandb").history[1]["loss"] == 2.5
    said = capsys.readouterr().err
    assert "wandb: no online run: UsageError: No API key configured." in said
    assert f"wandb: writes to {watching.folder / 'wandb'}, and uploads nothing; `wandb sync` does" in said


def test_without_the_library_the_run_goes_on_without_it(monkeypatch, tracker, capsys):
    def fails(**options):
        raise OSError("no service")

    monkeypatch.setattr(wandb, "init", fails)
    watching = tracker()
    watching.started(FACTS)
    watching.step_finished(STEP)
    watching.evaluated({"step": 1, "validation_loss": 1.0})
    watching.finished({})
    assert capsys.readouterr().err.splitlines() == [
        "wandb: no offline run: OSError: no service", "wandb: the run goes on without it",
    ]  # fmt: skip


def test_a_library_that_is_not_installed_is_no_reason_to_stop(monkeypatch, tracker, capsys):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    watching = tracker()
    watching.started(FACTS)
    assert "wandb: no offline run: ModuleNotFoundError" in capsys.readouterr().err


def test_nothing_is_uploaded_unless_the_experiment_says_so(monkeypatch, tracker):
    options = {}
    monkeypatch.setattr(wandb, "init", lambda **given: options.update(given))
    tracker().started(FACTS)
    assert options["mode"] == "offline"


def test_the_options_are_those_of_wandb(monkeypatch, tracker):
    options = {}
    monkeypatch.setattr(wandb, "init", lambda **given: options.update(given) or SimpleNamespace(url="https://here"))
    tracker(mode="online", project="p", entity="team", run_name="first", tags=["a"]).started(FACTS)
    given = {key: options[key] for key in ("mode", "project", "entity", "name", "tags")}
    assert given == {"mode": "online", "project": "p", "entity": "team", "name": "first", "tags": ["a"]}


def test_a_misspelt_mode_is_refused():
    with pytest.raises(ConfigError, match=r"trackers\.0\.mode='on-line'.*'offline' or 'online'"):
        tiny_recipe("trackers=[{name: wandb, mode: on-line}]")


def test_it_is_off_unless_named():
    assert "wandb" in {entry.name for entry in load_plugins().trackers}
    assert "wandb" not in [part.name for part in tiny_recipe("trackers=[console]").trackers]
