import json

import pytest
from command import nanovlm
from tiny import QUICKSTART, SIZES

from nanovlm.bench.request import Request

BENCH = ("bench", QUICKSTART, *SIZES)


def test_a_step_is_measured_and_shown():
    status, printed, errors = nanovlm(*BENCH, "--synthetic", "--steps", 1)
    assert (status, errors) == (0, "")
    for words in (
        "samples per second",
        "tokens per second",
        "mfu",
        "peak memory",
        "language decoder",
        "data wait",
    ):
        assert words in printed


def test_json_is_the_result_that_is_written(tmp_path):
    file = tmp_path / "results" / "a.json"
    status, printed, _ = nanovlm(*BENCH, "--synthetic", "--steps", 1, "--json", "--output", file)
    assert status == 0
    assert json.loads(printed) == json.loads(file.read_text())
    result = json.loads(printed)
    assert (result["part"], result["experiment"], result["synthetic"]) == ("step", "quickstart", True)
    assert result["command"].endswith("--synthetic --steps 1")
    assert "device=cpu" in result["command"]


@pytest.mark.parametrize("option", [["--part", "loader"], ["--part", "generate"], ["--memory", "--most", "2"]])
def test_every_other_part_is_shown(option):
    steps = [] if "--memory" in option else ["--steps", "1"]
    status, printed, errors = nanovlm(*BENCH, *option, *steps)
    assert (status, errors) == (0, "")
    assert "quickstart, " in printed


def test_the_table_is_printed_from_the_kept_results(monkeypatch):
    monkeypatch.chdir(QUICKSTART.parents[1])
    status, printed, _ = nanovlm("bench", "--table")
    assert status == 0
    assert f"\n{printed}" in f"\n{(QUICKSTART.parents[1] / 'README.md').read_text(encoding='utf-8')}"


def test_the_table_needs_results(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, _, errors = nanovlm("bench", "--table")
    assert status == 2
    assert "experiments/results: holds no result; run this from the root of a checkout" in errors


WRONG = [
    (["--part", "stepp"], "--part stepp: unknown part 'stepp'. Did you mean 'step'?"),
    (["--part", "step", "--memory"], "--part and --memory: each measures something else; give one of them at a time"),
    (["--memory", "--against", "x"], "--memory and --against: each measures something else"),
    (["--steps", "0"], "--steps 0: must be at least 1"),
    (["--memory", "--most", "0"], "--most 0: must be at least 1"),
    (["--against", "x", "--samples", "-1"], "--samples -1: must be at least 1"),
    (["--most", "4"], "--most 4: means something with --memory only; add it, or leave this out"),
    (["--samples", "4"], "--samples 4: means something with --against only; add it, or leave this out"),
    (["--memory", "--steps", "4"], "--steps 4: --memory takes one step of each size; use --most to stop it"),
    (["--against", "nowhere"], "--against nowhere: holds no models/vision_language_model.py"),
]


@pytest.mark.parametrize(("options", "words"), WRONG, ids=[" ".join(options) for options, _ in WRONG])
def test_what_cannot_be_measured_is_said(options, words):
    status, printed, errors = nanovlm(*BENCH, *options)
    assert (status, printed) == (2, "")
    assert f"nanovlm: {words}" in errors


def test_the_experiment_is_missing():
    status, _, errors = nanovlm("bench")
    assert status == 2
    assert "EXPERIMENT is missing: name a YAML file, for example experiments/quickstart.yaml" in errors


def test_an_output_that_cannot_be_made_is_told_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    status, _, errors = nanovlm(*BENCH, "--output", tmp_path / "file" / "a.json")
    assert status == 2
    assert "--output" in errors


def test_where_the_checkout_lies_is_not_told():
    request = Request(QUICKSTART, against=QUICKSTART.parent / "nanoVLM", samples=4)
    assert request.command.endswith("--against nanoVLM --samples 4")
