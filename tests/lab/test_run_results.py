"""Reading finished runs, and what is said of folders that hold none."""

import json
import re
import shutil

import pytest
from tiny import tiny_experiment

from nanovlm import ConfigError, train
from nanovlm.data.origins import read_losses
from nanovlm.evaluation.evaluator import read_items
from nanovlm.lab.results import Result


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(tiny_experiment("data.validation.share=0.2", "seed=4"), folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy to be spoilt."""
    return shutil.copytree(finished, tmp_path / "run")


def refusal(folder) -> str:
    with pytest.raises(ConfigError) as refused:
        Result.open(folder)
    return str(refused.value)


def test_a_finished_run_is_read_as_its_folder_holds_it(finished):
    result = Result.open(finished)
    assert result.seed == 4
    assert result.experiment["projector"] == {"name": "pixel_shuffle", "factor": 2}
    assert result.summary == json.loads((finished / "summary.json").read_text())
    assert result.provenance == json.loads((finished / "provenance.json").read_text())
    assert result.items == {"shapes": read_items(finished / "evaluation" / "shapes" / "3.jsonl")}
    assert len(result.items["shapes"]) == 8
    assert result.losses == read_losses(finished / "validation" / "3.jsonl")
    assert result.losses
    assert [event["step"] for event in result.curve] == [1, 2, 3]


def test_a_link_is_followed_so_that_it_may_point_elsewhere_soon(finished, tmp_path):
    (tmp_path / "latest").symlink_to(finished)
    assert Result.open(tmp_path / "latest").folder == finished


def test_provenance_and_curve_may_be_gone(run):
    (run / "provenance.json").unlink()
    (run / "metrics.jsonl").unlink()
    result = Result.open(run)
    assert (result.provenance, result.curve) == ({}, [])


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    assert refusal(tmp_path / "none").endswith(
        "none: there is no such folder; name a run's, for example runs/quickstart/latest"
    )


def test_an_empty_folder_is_no_runs(tmp_path):
    assert refusal(tmp_path).endswith("it holds no experiment.yaml, so it is no run's folder")


def test_a_models_folder_points_at_its_run(finished):
    assert refusal(finished / "model").endswith(f"model: this is a model's folder; name its run's, which is {finished}")


def test_a_models_folder_that_lies_in_no_run_is_called_so(run, tmp_path):
    alone = shutil.copytree(run / "model", tmp_path / "elsewhere" / "model")
    assert refusal(alone).endswith("this is a model's folder; name its run's")


def test_a_folder_of_runs_points_at_the_newest(run):
    assert refusal(run.parent).endswith(f"it holds runs and is none itself; name them, for example {run}")


def test_a_sweeps_folder_is_no_single_run(tmp_path):
    (tmp_path / "ablation.yaml").write_text("name: factors\n")
    assert "this is a sweep's folder, and one run is asked for: those in <variant>/s<seed>" in refusal(tmp_path)


def test_a_run_that_ended_before_its_first_step_is_to_be_started(run):
    (run / "summary.json").unlink()
    (run / "provenance.json").unlink()
    told = refusal(run)
    assert told.endswith(
        f"its run ended before its first step; start it by nanovlm train {run}/experiment.yaml --run-dir {run}"
    )


def test_a_run_that_has_not_finished_is_to_be_gone_on_with(run):
    (run / "summary.json").unlink()
    assert refusal(run) == f"{run}: its run has not finished; go on with it by nanovlm train --resume {run}"


@pytest.mark.parametrize("name", ["summary.json", "provenance.json"])
@pytest.mark.parametrize("spoil", [lambda text: text[: len(text) // 2], lambda text: "[1, 2]", lambda text: ""])
def test_damaged_json_is_named(run, name, spoil):
    text = (run / name).read_text()
    (run / name).write_text(spoil(text))
    assert re.search(rf"{name} is damaged: .*; train the run again", refusal(run))


def test_a_summary_without_what_everybody_needs_is_damaged(run):
    (run / "summary.json").write_text('{"steps": 3, "samples": 24}')
    assert refusal(run) == f"{run}/summary.json is damaged: it has no benchmarks; train the run again"


def test_a_damaged_line_of_metrics_is_named(run):
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"event": "st')
    number = len((run / "metrics.jsonl").read_text().splitlines())
    assert refusal(run) == f"{run}/metrics.jsonl, line {number} is damaged: it is no JSON object; remove the line"


def test_an_experiment_that_cannot_be_read_is_named(run):
    (run / "experiment.yaml").write_text("seed: [1")
    assert "experiment.yaml, line 1" in refusal(run)
    (run / "experiment.yaml").write_text("seed: one")
    assert "experiment.yaml: " in refusal(run)
    assert "seed='one'" in refusal(run)


def test_missing_items_can_be_made_again(run):
    file = run / "evaluation" / "shapes" / "3.jsonl"
    file.unlink()
    assert refusal(run) == (
        f"{file} is not there, but the run's summary has shapes: make it again by nanovlm evaluate {run} "
        f"--benchmark shapes --output {file}"
    )


def test_the_command_that_is_recommended_makes_them_again(run):
    from command import nanovlm

    file = run / "evaluation" / "shapes" / "3.jsonl"
    before = file.read_text()
    file.unlink()
    assert nanovlm("evaluate", run, "--benchmark", "shapes", "--output", file, "--no-controls").status == 0
    assert file.read_text() == before
    Result.open(run)


def test_a_torn_line_among_the_items_is_damage(run):
    file = run / "evaluation" / "shapes" / "3.jsonl"
    file.write_text(file.read_text()[:-20])
    assert f"{file} is damaged; make it again by nanovlm evaluate" in refusal(run)


def test_fewer_items_than_questions_are_damage(run):
    file = run / "evaluation" / "shapes" / "3.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:5]))
    assert f"{file} is damaged: 5 items of 8 questions; make it again by" in refusal(run)


def test_damaged_losses_are_named(run):
    file = run / "validation" / "3.jsonl"
    file.write_text(file.read_text()[:-20])
    assert refusal(run) == f"{file} is damaged: remove it, and go on without what it held"


@pytest.mark.parametrize("score", ["2.5", "-1", "NaN", "null", '"1"'])
def test_a_score_that_is_none_is_named_with_its_question(run, score):
    file = run / "evaluation" / "shapes" / "3.jsonl"
    first, *others = file.read_text().splitlines(keepends=True)
    name = json.loads(first)["id"]
    file.write_text("".join([re.sub(r'"score": [0-9.]+', f'"score": {score}', first), *others]))
    assert f"{file} is damaged: the score of {name} is no number from 0 to 1; make it again by" in refusal(run)


def test_a_file_is_no_folder(run):
    file = run / "summary.json"
    with pytest.raises(ConfigError, match=re.escape(f"{file}: this is a file; name its run's folder, which is {run}")):
        Result.open(file)


def test_controls_that_are_no_numbers_are_as_good_as_none(run):
    summary = json.loads((run / "summary.json").read_text())
    summary["benchmarks"]["shapes"]["controls"] = {"no_image": None, "shuffled": 0.5}
    (run / "summary.json").write_text(json.dumps(summary))
    assert Result.open(run).controls("shapes") == {"shuffled": 0.5}
    summary["benchmarks"]["shapes"]["controls"] = None
    (run / "summary.json").write_text(json.dumps(summary))
    assert Result.open(run).controls("shapes") == {}
