"""``nanovlm ablate``: planned, trained, interrupted, gone on with."""

import io
import json
import re
import shlex
import signal
from functools import partial
from pathlib import Path

import pytest
from command import nanovlm
from rich.console import Console
from sweeping import Teller, ablation_file, contents, program, starts
from tiny import QUICKSTART, SIZES

from nanovlm.cli import ablate
from nanovlm.cli.ablate import plan_table
from nanovlm.lab.ablation import load_ablation
from nanovlm.lab.prospect import plan_ablation
from nanovlm.lab.sweep import conductor
from nanovlm.lab.sweep.jobs import Processes


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(conductor, "POLL", 0.02)


@pytest.fixture
def stand_in(monkeypatch):
    """``stand_in(factor_1="fail")``: no run is really trained."""

    def stand_in(**behaviours):
        monkeypatch.setattr(ablate, "Processes", partial(Processes, program=program(**behaviours)))

    return stand_in


def run(*words, factors="[1, 2]", seeds="[0]"):
    return nanovlm("ablate", ablation_file(Path(), factors, seeds), *SIZES, *words)


def folder(*below):
    return Path("runs", "ablations", "question", *below)


def test_the_plan_names_every_variant_and_writes_nothing():
    done = run("--plan", seeds="[0, 1, 2]")
    assert done.status == 0, done.err
    rows = {cells[1].strip(): cells[2:] for line in done.out.splitlines() if len(cells := line.split("│")) > 3}
    assert list(rows) == ["factor=2", "factor=1"]
    assert [cell.strip() for cell in rows["factor=1"]][1] == "16"
    assert "3 steps" in rows["factor=1"][4]
    assert "2 variants x 3 seeds = 6 runs, one after another: about" in done.out
    assert not Path("runs").exists()


def test_the_plan_says_how_little_two_seeds_find():
    few = "use 3 or more (ablate.seeds=[0, 1, 2])"
    assert f"2 seeds find next to nothing, for they hardly tell how much seeds differ: {few}" in planned("[0, 1]")
    assert f"one seed says which of two checkpoints is better, and not which setting: {few}" in planned("[0]")
    assert few not in planned("[0, 1, 2]")


def planned(seeds):
    return " ".join(run("--plan", seeds=seeds).out.split())


def test_the_plan_counts_what_is_left_only(stand_in):
    def told(*words):
        return " ".join(run(*words).out.split("\n\n")[0].split())

    seconds = [float(seconds) for seconds in re.findall(r"one after another: about (\d+) s", told("--plan"))]
    stand_in(factor_1="fail")
    assert "2 variants x one seed = 2 runs, one after another: about" in told()
    again = told("--plan")
    assert "2 variants x one seed = 2 runs, 1 of them left, one after another: about" in again
    half = float(re.findall(r"about (\d+) s on this machine", again)[0])
    assert half == pytest.approx(seconds[0] / 2, abs=1)
    stand_in()
    assert run().status == 0
    for words in ((), ("--plan",)):
        assert "2 variants x one seed = 2 runs, all done: nothing is left to train" in told(*words)
    assert "2 runs, one after another: about" in told("--plan", "--sweep-dir", "elsewhere")


def test_an_edited_plugin_is_refused_and_its_finished_runs_can_be_compared(monkeypatch):
    """With real runs, which record their plugins themselves."""
    source = Path(__file__).parents[2] / "plugins" / "pixel_shuffle.py"
    plugin = Path("shuffle.py")
    plugin.write_text(source.read_text().replace('"pixel_shuffle"', '"shuffle"'))
    asked = ("projector.name=shuffle", "training.steps=1", "--plugin", plugin)
    assert run(*asked).status == 0
    before = contents(folder("factor=2")) | contents(folder("factor=1"))
    assert run(*asked).status == 0
    plugin.write_text(f"{plugin.read_text()}\n# edited\n")
    done = run(*asked)
    assert done.status == 2
    assert "2 runs, one after another: about" in done.out  # those asked for now
    assert f"factor=2/s0, factor=1/s0: projector shuffle: its plugin has changed ({plugin.resolve()})" in done.err
    assert contents(folder("factor=2")) | contents(folder("factor=1")) == before
    compared = nanovlm("compare", *done.err.split("nanovlm compare ")[1].split())
    assert compared.status == 0 and "against factor=2" in compared.out


def test_the_plan_as_json():
    plan = json.loads(run("--plan", "--json").out)
    assert plan["variants"]["factor=2"]["image_tokens"] == 4
    assert plan["seconds"] > 0


def test_what_cannot_work_is_refused_before_anything_is_trained():
    done = run(factors="[1, 2, 3]")
    assert done.status == 2
    assert "factor=3" in done.err and "divide" in done.err
    assert not Path("runs").exists()


def test_an_interrupted_sweep_goes_on_where_it_was_and_finishes():
    """With real runs. The second is never begun at first; the first is gone on with, and not begun again."""
    logged = folder("factor=2", "s0", "metrics.jsonl")
    long = ("training.steps=60", "checkpoints.every=0")
    words = [size for size in SIZES if not size.startswith("training.steps")]
    file = ablation_file(Path())
    with Teller([signal.SIGINT], [logged], pause=0):
        stopped = nanovlm("ablate", file, *words, *long)
    assert stopped.status == 1
    command = shlex.join(["nanovlm", "ablate", str(file), *words, *long])
    assert stopped.err.endswith(f"nanovlm: stopped with 0 of 2 runs done; go on with {command}\n")
    assert "factor=2/s0: stopped: after step" in stopped.out
    done = nanovlm("ablate", file, *words, *long)
    assert done.status == 0, done.err
    assert "2 runs: 2 done" in done.out
    for variant in ("factor=2", "factor=1"):
        steps = [json.loads(line)["step"] for line in folder(variant, "s0", "metrics.jsonl").open()]
        assert [step for step in steps if step <= 60] == sorted(steps)
        summary = json.loads(folder(variant, "s0", "summary.json").read_text())
        assert (summary["name"], summary["steps"]) == (f"question-{variant}", 60)
    commands = [line for line in folder("factor=2", "s0.log").open() if line.startswith("$ ")]
    assert [" --resume " in command for command in commands] == [False, True]
    before = contents(folder("factor=2")) | contents(folder("factor=1"))
    assert nanovlm("ablate", file, *words, *long).status == 0
    assert contents(folder("factor=2")) | contents(folder("factor=1")) == before


def test_a_failed_run_is_told_with_its_reason_and_its_log(stand_in):
    stand_in(factor_1="fail")
    done = run()
    assert done.status == 1
    assert "2 runs: 1 done, 1 failed" in done.out
    assert f"factor=1/s0 failed: ValueError: a bug\n    {folder('factor=1', 's0.log')}" in done.out
    assert done.err.startswith("nanovlm: no report: ")  # the stand-in leaves no results to speak of
    assert done.err.endswith("nanovlm: not all runs are done; the same command tries the others again\n")
    stand_in()
    assert run().status == 0


def test_the_states_as_json(stand_in):
    stand_in(factor_1="vanish")
    done = run("--json", "--sweep-dir", "elsewhere")
    assert done.status == 1
    told = json.loads(done.out)
    assert told["folder"] == "elsewhere"
    assert [(each["variant"], each["seed"], each["state"]) for each in told["runs"]] == [
        ("factor=2", 0, "done"),
        ("factor=1", 0, "failed"),
    ]
    assert told["runs"][1]["log"] == "elsewhere/factor=1/s0.log"
    assert "the plan" in done.err  # what is no JSON is elsewhere


def test_plugins_go_with_the_runs(stand_in):
    stand_in()
    plugin = Path(__file__).parents[1] / "training" / "faulty_plugin.py"
    assert run("--plugin", plugin).status == 0
    assert starts(folder("factor=1", "s0"))[0]["words"][4:] == ["--plugin", str(plugin)]


def test_runs_side_by_side_share_the_processors(stand_in):
    stand_in()
    done = run("--jobs", "2")
    assert done.status == 0
    assert "compare their accuracies, not their times" in done.out
    assert {starts(folder(variant, "s0"))[0]["OMP_NUM_THREADS"] for variant in ("factor=1", "factor=2")} == {"1"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--submit-option", "timeout_min=5"), "--submit-option is for --submit: name a cluster by it"),
        (("--submit", "slurm"), "--submit slurm: how many minutes may a run take?"),
        (("--submit", "local", "--submit-option", "gpu"), "--submit-option gpu: expected key=value"),
        (("projector.facter=2",), "Did you mean 'factor'?"),
    ],
)
def test_wrong_words_are_refused(words, message):
    done = run(*words)
    assert done.status == 2
    assert message in done.err
    assert not Path("runs").exists()


def test_a_cluster_gets_all_runs_at_once_and_a_gpu_for_each(monkeypatch):
    asked = []

    def submitit(cluster, folder, options, slots):
        asked.append((cluster, folder, options, slots))
        return Processes([{}] * slots, program())

    monkeypatch.setattr(ablate, "Submitit", submitit)
    assert run("--submit", "slurm", "--submit-option", "timeout_min=5", "device=auto", seeds="[0, 1]").status == 0
    assert run("--submit", "local", "--sweep-dir", "other").status == 0
    assert asked == [
        ("slurm", folder("submitit"), {"gpus_per_node": 1, "timeout_min": 5}, 4),
        ("local", Path("other", "submitit"), {"gpus_per_node": 0}, 1),
    ]


def test_the_plan_is_whole_in_a_narrow_terminal(registries):
    """A name is folded, and no figure is cut."""
    variants = "{projector_and_decoder: {}, projector_and_decoder_later: {training.frozen_until_step.projector: 2}}"
    section = f"ablate={{variants: {variants}, baseline: projector_and_decoder}}"
    ablation = load_ablation(QUICKSTART, ["training.steps=600", section])
    console = Console(width=80, file=io.StringIO())
    console.print(plan_table(ablation, plan_ablation(ablation, registries), []))
    text = console.file.getvalue()
    assert "…" not in text
    names = "".join(line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│"))
    assert names == "projector_and_decoderprojector_and_decoder_later"
