"""``nanovlm compare``, on runs of a fraction of a second each."""

import json
import re
import shutil

import pytest
from command import nanovlm
from tiny import tiny_experiment

from nanovlm import train
from nanovlm.lab.comparison import Comparison, Costs, Score, VariantResult
from nanovlm.lab.statistics import Estimate


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Factors 2 and 4 with seeds 0 and 1, and one that was asked more questions."""
    parent = tmp_path_factory.mktemp("compared")
    for factor in (2, 4):
        for seed in (0, 1):
            experiment = tiny_experiment(f"projector.factor={factor}", f"seed={seed}", "data.validation.share=0.2")
            train(experiment, parent / f"f{factor}-s{seed}")
    train(tiny_experiment("benchmarks.0.test_size=12"), parent / "more")
    return {folder.name: folder for folder in parent.iterdir()}


@pytest.fixture(scope="session")
def told(runs) -> str:
    done = nanovlm("compare", *(runs[name] for name in ("f2-s0", "f2-s1", "f4-s0", "f4-s1")))
    assert (done.status, done.err) == (0, "")
    return done.out


def row(told: str, first: str, title: str) -> list[str]:
    """The cells of a table's row."""
    below = told.partition(title)[2].splitlines()
    line = next(line for line in below if line.startswith(f"  {first} "))
    return re.split(r"\s{2,}", line.strip())


def test_every_variant_has_its_row_in_every_table(told):
    assert row(told, "factor=4", "Variants") == ["factor=4", "projector.factor = 4", "0, 1"]
    assert row(told, "factor=2", "Accuracy on shapes, 8 questions")[1].endswith("]")
    assert row(told, "factor=4", "Validation loss")[1].endswith("]")
    assert row(told, "factor=4", "image tokens")[2] == "1"
    assert row(told, "factor=2", "image tokens")[2] == "4"


def test_the_verdict_stands_below_the_tables(told):
    words = told.partition("\nshapes\n")[2]
    assert words.startswith("  factor=4: ")
    assert "points [" in words
    assert "against factor=2" in words
    assert "no difference seen; with 2 seeds and 8 items one under" in words
    assert "\nvalidation loss\n  factor=4: " in words
    assert "\npaired: runs of one seed saw the same samples" in words


def test_a_model_that_does_not_look_is_flagged(told):
    assert "  factor=2: does no better than without pictures (" in told


def test_json_holds_everything(runs):
    done = nanovlm("compare", runs["f4-s0"], runs["f2-s0"], "--baseline", "factor=2", "--json")
    found = json.loads(done.out)
    assert (done.status, found["baseline"]) == (0, "factor=2")
    assert [variant["name"] for variant in found["variants"]] == ["factor=2", "factor=4"]
    assert found["variants"][1]["runs"] == [str(runs["f4-s0"])]
    score = found["variants"][1]["scores"]["shapes"]
    summary = json.loads((runs["f4-s0"] / "summary.json").read_text())
    assert score["accuracy"]["value"] == summary["benchmarks"]["shapes"]["accuracy"]
    assert score["accuracy"]["low"] == pytest.approx(summary["benchmarks"]["shapes"]["ci95"][0])
    assert found["variants"][1]["validation_loss"]["value"] == pytest.approx(summary["validation_loss"])
    assert "with one seed" in score["sentence"]


def test_other_questions_are_refused_unless_common_ones_are_enough(runs):
    refused = nanovlm("compare", runs["f2-s0"], runs["more"])
    assert refused.status == 2
    assert "was asked 8 questions of shapes" in refused.err
    assert "they have 8 in common; --common compares these" in refused.err
    done = nanovlm("compare", runs["f2-s0"], runs["more"], "--common")
    assert done.status == 0
    assert "shapes: of up to 12 questions only those 8 count that all runs were asked" in done.out


def test_bad_folders_are_reported_without_a_traceback(runs, tmp_path):
    done = nanovlm("compare", runs["f2-s0"] / "model", tmp_path)
    assert (done.status, done.out) == (2, "")
    assert "this is a model's folder" in done.err
    assert "it holds no experiment.yaml" in done.err


def test_the_same_seed_twice_is_refused(runs, tmp_path):
    (tmp_path / "again").symlink_to(runs["f2-s0"])
    done = nanovlm("compare", runs["f2-s0"], tmp_path / "again")
    assert done.status == 2
    assert "this run is named twice" in done.err


def test_diff_says_what_differs_and_only_that(runs):
    done = nanovlm("compare", "--diff", runs["f2-s0"], runs["f4-s0"])
    assert done.status == 0
    assert "projector.factor: 2 -> 4" in done.out
    assert "vision_encoder" not in done.out
    assert "Accuracy" not in done.out


def test_diff_as_json(runs):
    found = json.loads(nanovlm("compare", "--diff", "--json", runs["f2-s0"], runs["f4-s0"]).out)
    assert {"section": "experiment", "key": "projector.factor", "a": 2, "b": 4} in found


def test_diff_takes_two_runs(runs):
    done = nanovlm("compare", "--diff", runs["f2-s0"])
    assert (done.status, done.err) == (2, "nanovlm: --diff compares two runs, and 1 is named\n")
    done = nanovlm("compare", "--diff", *(runs[name] for name in ("f2-s0", "f2-s1", "f4-s0")))
    assert (done.status, done.err) == (2, "nanovlm: --diff compares two runs, and 3 are named\n")


def test_a_report_is_written_where_it_is_asked_for(runs, tmp_path):
    done = nanovlm("compare", runs["f2-s0"], runs["f4-s0"], "--output", tmp_path / "report")
    assert done.status == 0
    for name in ("report.md", "report.html", "summary.json"):
        assert (tmp_path / "report" / name).is_file()
        assert f"  {tmp_path / 'report' / name}" in done.out


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_read(runs, tmp_path):
    (tmp_path / "file").write_text("")
    done = nanovlm("compare", runs["f2-s0"], runs["f4-s0"], "--output", tmp_path / "file" / "report")
    assert done.status == 2
    assert done.err.startswith(f"nanovlm: --output {tmp_path / 'file' / 'report' / 'report.md'}: no folder can be made")


def test_names_are_shown_as_they_are_and_are_no_markup(capsys):
    told = shown(capsys, "[red]a", "[/b]:ox:")
    assert "[red]a" in told and "Accuracy on [/b]:ox:," in " ".join(told.split())


def test_of_a_benchmark_without_a_verdict_nothing_is_said_below(capsys):
    assert "\nb\n" not in shown(capsys, "a", "b")


def shown(capsys, variant: str, benchmark: str) -> str:
    """What is printed of one variant with nothing but an accuracy."""
    from nanovlm.cli.compare import show

    costs = Costs(*[None] * 8)
    score = Score(Estimate(0.5), 3)
    only = VariantResult(variant, {}, (), (0,), costs, {benchmark: score})
    show(Comparison("x", variant, (benchmark,), (only,)))
    return capsys.readouterr().out


def test_runs_without_a_common_seed_are_not_said_to_be_paired(runs):
    told = nanovlm("compare", runs["f2-s0"], runs["f4-s1"]).out
    assert "factor=4: has no seed in common with factor=2" in told
    assert "paired" not in told


def test_paired_is_said_of_what_the_settings_leave_alone(told):
    assert "from the same initial weights wherever the variants' settings leave them" in told


@pytest.mark.parametrize("option", [["--baseline", "factor=2"], ["--common"], ["--output", "report"]])
def test_diff_takes_no_option_that_it_would_pass_over(runs, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = nanovlm("compare", "--diff", runs["f2-s0"], runs["f4-s0"], *option)
    expected = "nanovlm: --diff only tells what differs: leave out --baseline, --common and --output\n"
    assert (done.status, done.out, done.err) == (2, "", expected)


def test_diff_as_json_has_no_number_that_is_none(runs, tmp_path):
    endless = shutil.copytree(runs["f4-s0"], tmp_path / "endless")
    file = endless / "experiment.yaml"
    file.write_text(re.sub(r"factor: 4", "factor: .inf", file.read_text()))
    told = nanovlm("compare", "--diff", "--json", runs["f2-s0"], endless).out
    changes = {change["key"]: change["b"] for change in json.loads(told, parse_constant=pytest.fail)}
    assert changes["projector.factor"] is None
