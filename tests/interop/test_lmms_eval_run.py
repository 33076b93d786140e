"""What becomes of lmms-eval's results, told by records of them, so that lmms-eval itself is not needed here."""

import json
import shutil
import sys

import pytest
from command import nanovlm
from tiny import tiny_experiment

from nanovlm import ConfigError, DataError, train
from nanovlm.evaluation.metrics import wilson_interval
from nanovlm.interop.lmms_eval_run import check_tasks, evaluation_of, keep
from nanovlm.interop.model_card import model_card
from nanovlm.lab.results import Result

STEPS = 3


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded") / "run"
    train(tiny_experiment(), folder)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def sample(number, said="red", **metrics):
    return {
        "doc_id": number,
        "arguments": [f"Question {number}?", {"until": []}],
        "filtered_resps": [said],
        "target": "red",
        **metrics,
    }


def found(samples, better=("hits",), **figures):
    """What ``lmms_eval.evaluator.simple_evaluate`` returns, as far as we read it."""
    return {
        "samples": {"task": samples},
        "higher_is_better": {"task": dict.fromkeys(better, True)},
        "results": {"task": {"alias": "task", "samples": len(samples), **figures}},
        "versions": {"task": 1.0},
        "lmms_eval_version": "0.7.3",
    }


def test_a_questions_score_is_a_number_or_the_score_of_a_mapping():
    for value in (0.5, {"score": 0.5, "category": "x"}):
        evaluation = evaluation_of("task", found([sample(0, hits=value), sample(1, hits=1)]), {})
        assert [item.score for item in evaluation.items] == [0.5, 1.0]
        assert evaluation.benchmark == "lmms-task"


def test_the_first_metric_counts_that_every_question_has_and_of_which_more_is_better():
    samples = [sample(0, part=1, errors=1, all=0, more=1), sample(1, errors=1, all=1, more=1)]
    record = found(samples, ("part", "errors", "all", "more"), **{"all,none": 0.5, "all_stderr,none": float("nan")})
    record["higher_is_better"]["task"]["errors"] = False
    summary = evaluation_of("task", record, {}).summary()
    assert summary["lmms_eval"]["metric"] == "all" and summary["accuracy"] == 0.5
    assert summary["lmms_eval"]["figures"] == {"all,none": 0.5}  # JSON has no NaN


def test_of_several_filters_the_first_counts():
    samples = [sample(0, "red", hits=1), sample(1, "blue", hits=0), sample(0, "RED", hits=0), sample(1, "BLUE", hits=0)]
    evaluation = evaluation_of("task", found(samples), {})
    assert [(item.id, item.prediction, item.score) for item in evaluation.items] == [("0", "red", 1), ("1", "blue", 0)]


def test_of_scored_choices_the_one_with_the_smallest_loss_is_the_answer():
    scored = sample(0, hits=1) | {"filtered_resps": [(3.0, False), (0.5, True), (float("inf"), False)]}
    assert evaluation_of("task", found([scored]), {}).items[0].prediction == "1"


def test_what_could_not_be_asked_is_wrong_whatever_its_score():
    evaluation = evaluation_of("task", found([sample(0, "", hits=1), sample(1, hits=1)]), {("task", 0): "too long"})
    assert [(item.score, item.skipped) for item in evaluation.items] == [(0, "too long"), (1, None)]
    assert evaluation.summary()["skipped"] == {"too long": 1}


def test_scores_beyond_1_are_refused_and_the_tasks_figures_are_told():
    with pytest.raises(DataError, match=r"task: none of its metrics \(hits\).* lmms-eval says hits,none = 1200"):
        evaluation_of("task", found([sample(0, hits=7)], **{"hits,none": 1200}), {})
    with pytest.raises(DataError, match="task: lmms-eval asked no question of it"):
        evaluation_of("task", found([]), {})


def test_what_is_kept_is_in_the_runs_results_in_its_card_and_in_comparisons(run):
    before = (run / "summary.json").read_bytes()
    evaluation = evaluation_of("task", found([sample(i, hits=i % 2) for i in range(7)]), {})
    assert keep(evaluation, str(run / "model")) == run / "evaluation" / "lmms-task" / f"{STEPS}.jsonl"
    result = Result.open(run)
    assert result.items["lmms-task"] == evaluation.items
    assert list(result.summary["benchmarks"]) == ["shapes", "lmms-task"]
    assert (run / "summary.json").read_bytes() == before  # what the run said about itself stands
    card = model_card(run / "model", "me/tiny")
    assert "lmms-task (7 questions)" in card
    assert all(f"{100 * bound:.1f}" in card for bound in wilson_interval([item.score for item in evaluation.items]))
    compared = nanovlm("compare", run, "--json")
    assert compared.status == 0 and "lmms-task" in compared.out


def test_a_model_that_is_not_a_runs_last_has_no_place_to_keep_results(run, tmp_path):
    evaluation = evaluation_of("task", found([sample(0, hits=1)]), {})
    assert keep(evaluation, str(run / "model-best")) is None
    assert keep(evaluation, str(tmp_path)) is None
    (run / "summary.json").unlink()
    assert keep(evaluation, str(run / "model")) is None


def test_damaged_results_are_named_with_what_makes_them_again(run):
    evaluation = evaluation_of("task", found([sample(0, hits=1)]), {})
    file = keep(evaluation, str(run / "model"))
    file.write_text("")
    with pytest.raises(ConfigError, match=f"make it again by nanovlm evaluate {run} --lmms-eval task"):
        Result.open(run)
    assert keep(evaluation, str(run / "model"))  # and it does
    Result.open(run)
    file.with_suffix(".json").write_text("{")
    with pytest.raises(ConfigError, match=r"3\.json is damaged: .*; remove it, and evaluate again"):
        Result.open(run)


def test_unknown_tasks_are_all_named_with_those_that_were_meant():
    with pytest.raises(ConfigError) as error:
        check_tasks(["mmstra", "mme", "zzz"], ["mmstar", "mme"])
    assert "--lmms-eval mmstra: lmms-eval has no such task. Did you mean 'mmstar'?" in str(error.value)
    assert "--lmms-eval zzz: lmms-eval has no such task. `lmms-eval tasks list`" in str(error.value)
    check_tasks(["mme"], ["mmstar", "mme"])


def test_without_lmms_eval_the_way_to_install_it_is_told(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.setitem(sys.modules, "lmms_eval.evaluator", None)
    done = nanovlm("evaluate", run, "--lmms-eval", "mmstar")
    assert done.status == 2 and 'pip install "nanovlm[lmms-eval]"' in done.err


@pytest.mark.parametrize(
    "options, message",
    [
        (("--lmms-eval", "mmstar", "--benchmark", "shapes"), "--lmms-eval brings its own benchmarks"),
        (("--lmms-eval", "mmstar", "test_size=3"), "--lmms-eval brings its own benchmarks"),
        (("--include-path", "tasks"), "--include-path names a folder with tasks for --lmms-eval, which is missing"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(run, options, message):
    done = nanovlm("evaluate", run, *options)
    assert done.status == 2 and message in done.err


def test_the_summary_beside_the_items_is_whole_json(run):
    keep(evaluation_of("task", found([sample(0, hits=1)], **{"hits,none": 1.0}), {}), str(run / "model"))
    summary = json.loads((run / "evaluation" / "lmms-task" / f"{STEPS}.json").read_text())
    assert summary["lmms_eval"] == {
        "task": "task", "metric": "hits", "version": "0.7.3", "task_version": "1.0", "figures": {"hits,none": 1.0}
    }  # fmt: skip
