"""A sweep finishes all runs that can be, repeats none, and leaves none behind; what became of each is in its folder."""

import fcntl
import os
import signal

import pytest
from sweeping import Teller, contents, processes, signals, starts, tiny_ablation

from nanovlm import ConfigError
from nanovlm.lab.sweep import conductor
from nanovlm.lab.sweep.conductor import run_sweep
from nanovlm.lab.sweep.sweep import Sweep, last_words, states
from nanovlm.training.interrupts import Stopped
from nanovlm.yaml_reader import read_yaml


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    monkeypatch.setattr(conductor, "POLL", 0.02)


@pytest.fixture
def sweep(tmp_path, registries):
    """``sweep(*overrides, factors=, seeds=, slots=, factor_1="fail")`` in one folder; the states, by label."""

    def sweep(*overrides, factors="[1, 2]", seeds="[0]", slots=1, watch=None, **behaviours):
        ablation = tiny_ablation(tmp_path, *overrides, factors=factors, seeds=seeds)
        runner = processes(slots, **behaviours)
        found = run_sweep(ablation, tmp_path / "sweep", registries, runner, watch)
        return {f"{state.variant}/s{state.seed}": state for state in found}

    return sweep


def test_every_variant_is_trained_with_every_seed_the_variants_of_a_seed_together(sweep, tmp_path):
    found = sweep(seeds="[0, 7]")
    assert {label: state.state for label, state in found.items()} == dict.fromkeys(
        ("factor=2/s0", "factor=1/s0", "factor=2/s7", "factor=1/s7"), "done"
    )
    began = [starts(state.folder)[0]["time"] for state in found.values()]
    assert began == sorted(began)
    for label, state in found.items():
        assert state.folder == tmp_path / "sweep" / label
        asked = read_yaml(state.folder.with_name(f"{state.folder.name}.yaml"))
        assert f"factor={asked['projector']['factor']}/s{asked['seed']}" == label
        assert "one line of output" in state.log.read_text()


def test_the_folder_says_what_was_asked(sweep, tmp_path):
    sweep()
    ablation = tiny_ablation(tmp_path)
    assert Sweep.open(tmp_path / "sweep") == Sweep.of(ablation, tmp_path / "sweep")
    assert read_yaml(tmp_path / "sweep" / "ablation.yaml") == {
        "name": "question",
        "baseline": "factor=2",
        "seeds": [0],
        "match": "samples",
        "variants": {"factor=2": {"projector.factor": 2}, "factor=1": {"projector.factor": 1}},
    }


def test_what_is_finished_is_not_repeated(sweep, tmp_path):
    first = sweep()
    before = contents(tmp_path / "sweep")
    del before[str(tmp_path / "sweep" / "ablation.yaml")]
    again = sweep(seeds="[0, 1]")
    assert before.items() <= contents(tmp_path / "sweep").items()
    assert {label: again[label] for label in first} == first
    assert [len(starts(state.folder)) for state in again.values()] == [1, 1, 1, 1]


RESAMPLER = "{name: resampler, num_queries: 4, num_layers: 1, num_heads: 1, head_dim: 8}"


def test_what_another_value_renames_goes_on_under_its_new_name(sweep, tmp_path):
    def asked(*resamplers, **behaviours):
        axes = f"ablate.axes={{projector: [pixel_shuffle, {', '.join(resamplers)}]}}"
        found = sweep(axes, "ablate.baseline=projector=pixel_shuffle", seeds="[0, 1]", **behaviours)
        assert all(state.state == "done" for state in found.values())
        return {label: [start["words"][2] for start in starts(state.folder)] for label, state in found.items()}

    alone, other = tmp_path / "sweep" / "projector=resampler", RESAMPLER.replace("4", "2")
    with Teller([signal.SIGINT], [alone / "s0" / "metrics.jsonl"]), pytest.raises(Stopped):
        asked(RESAMPLER, projector_resampler="last")
    begun = asked(RESAMPLER, other)
    assert begun["projector=resampler-num_queries=4/s0"] == ["--run-dir", "--resume"]
    assert not alone.exists()
    again = asked(RESAMPLER)
    assert again == {
        "projector=pixel_shuffle/s0": ["--run-dir"],
        "projector=resampler/s0": ["--run-dir", "--resume"],
        "projector=pixel_shuffle/s1": ["--run-dir"],
        "projector=resampler/s1": ["--run-dir"],
    }


def test_a_run_in_training_is_not_renamed(sweep, tmp_path):
    def asked(*values):
        axes = f"ablate.axes={{projector: [pixel_shuffle, {', '.join(values)}]}}"
        return sweep(axes, "ablate.baseline=projector=pixel_shuffle", projector_resampler="fail")

    asked(RESAMPLER)
    run = tmp_path / "sweep" / "projector=resampler" / "s0"
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=f"^{run}: another process trains in this folder"):
            asked(RESAMPLER, RESAMPLER.replace("4", "2"))
    assert run.is_dir()


def test_a_run_that_fails_stops_no_other_and_is_tried_again(sweep):
    found = sweep(factor_2="fail")
    assert (found["factor=2/s0"].state, found["factor=2/s0"].reason) == ("failed", "ValueError: a bug")
    assert found["factor=1/s0"].state == "done"
    assert "Traceback" in found["factor=2/s0"].log.read_text()
    again = sweep()
    assert [state.state for state in again.values()] == ["done", "done"]
    assert len(starts(again["factor=2/s0"].folder)) == 2
    assert "Traceback" in again["factor=2/s0"].log.read_text()  # what it said before is still to be read


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("refuse", "projector: factor=3 must divide"),
        ("die", "killed by SIGKILL: was there too little memory?"),
        ("vanish", "ended with status 3, without a summary and without a word"),
    ],
)
def test_a_failed_run_has_its_last_words_as_the_reason(sweep, tmp_path, behaviour, reason):
    found = sweep(factor_1=behaviour)
    assert (found["factor=1/s0"].state, found["factor=1/s0"].reason) == ("failed", reason)
    assert found["factor=2/s0"].state == "done"
    assert states(Sweep.open(tmp_path / "sweep")) == list(found.values())


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        ("step 1/3\nnanovlm: data.train.0: no sample\n  more of it\n", "nanovlm: data.train.0: no sample"),
        ("Traceback (most recent call last):\n  File\nKeyError: 'x'\nwandb: synced\n", "KeyError: 'x'"),
        (
            "Traceback (most recent call last):\n  File\nRuntimeError: Caught ValueError in DataLoader worker\n"
            "Original Traceback (most recent call last):\n  File\nValueError: deep\n\n",
            "ValueError: deep",
        ),
        (
            "Traceback (most recent call last):\n  x\ntorch.OutOfMemoryError: CUDA out of memory.\n",
            "torch.OutOfMemoryError: CUDA out of memory.",
        ),
        ("Traceback (most recent call last):\n  x\nKeyboardInterrupt\n", "KeyboardInterrupt"),
        ("Where: no traceback is above\nstep 1/3\n", ""),
        ("nanovlm: of the first\n$ python -m nanovlm train\nstep 1/3\n", ""),
    ],
)
def test_last_words_are_those_of_the_last_process(printed, words):
    assert last_words(f"$ python -m nanovlm train\n{printed}") == words


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_each_run_is_told_once_to_end_and_goes_on_later(sweep, tmp_path, number):
    runs = [tmp_path / "sweep" / f"factor={factor}" / "s0" for factor in (2, 1)]
    logged = [run / "metrics.jsonl" for run in runs]
    with Teller([number], logged), pytest.raises(Stopped, match=r"^stopped with 0 of 3 runs done$"):
        sweep(factors="[1, 2, 4]", slots=2, factor_1="last", factor_2="last")
    assert [signals(run) for run in runs] == [[signal.Signals(number).name]] * 2
    found = {state.variant: (state.state, state.reason) for state in states(Sweep.open(tmp_path / "sweep"))}
    stopped = ("stopped", "after step 2 of 3")
    assert found == {"factor=2": stopped, "factor=1": stopped, "factor=4": ("waiting", "")}
    assert all(state.state == "done" for state in sweep(factors="[1, 2, 4]").values())
    assert [[start["words"][2] for start in starts(run)] for run in runs] == [["--run-dir", "--resume"]] * 2


def test_a_second_signal_is_passed_on_too(sweep, tmp_path):
    run = tmp_path / "sweep" / "factor=2" / "s0"
    told = [signal.SIGINT, signal.SIGTERM]
    with Teller(told, [run / "metrics.jsonl"]), pytest.raises(Stopped):
        sweep(factor_2="ignore")
    assert signals(run) == ["SIGINT", "SIGTERM"]


@pytest.fixture
def heeds_a_closed_terminal():
    """The tests themselves may have been started by nohup, under which a closed terminal means nothing."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_ends_the_runs_with_a_checkpoint(sweep, tmp_path, heeds_a_closed_terminal):
    run = tmp_path / "sweep" / "factor=2" / "s0"
    with Teller([signal.SIGHUP], [run / "metrics.jsonl"]), pytest.raises(Stopped):
        sweep(factor_2="last")
    assert signals(run) == ["SIGTERM"]  # which runs listen to


def test_a_sweep_leaves_the_signals_as_they_were(sweep):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    sweep()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_run_has_a_session_of_its_own_which_no_terminal_speaks_to(sweep):
    for state in sweep().values():
        start = starts(state.folder)[0]
        assert start["session"] == start["pid"] != os.getsid(0)


def test_a_run_that_was_told_to_end_is_stopped_whatever_it_said(sweep, tmp_path):
    run = tmp_path / "sweep" / "factor=2" / "s0"
    with Teller([signal.SIGINT], [run / "metrics.jsonl"]), pytest.raises(Stopped):
        sweep(factor_2="crash")
    state = states(Sweep.open(tmp_path / "sweep"))[0]
    assert (state.state, state.reason) == ("stopped", "the sweep was told to end")


def test_no_run_is_left_behind_when_the_sweep_itself_fails(sweep, tmp_path):
    run = tmp_path / "sweep" / "factor=2" / "s0"

    def watch(states):
        if (run / "metrics.jsonl").is_file():
            raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        sweep(factor_2="last", watch=watch)
    assert signals(run) == ["SIGTERM"]
    assert (run / "checkpoints" / "2").is_file()


def test_a_run_whose_process_and_sweep_were_killed_is_stopped(sweep, tmp_path):
    sweep(factor_1="die")
    log = tmp_path / "sweep" / "factor=1" / "s0.log"
    log.write_text("".join(line for line in log.open() if not line.startswith("nanovlm: ")))  # which the sweep said
    state = states(Sweep.open(tmp_path / "sweep"))[1]
    assert (state.state, state.reason) == ("stopped", "its process is gone, and left no word")


def test_a_run_without_a_checkpoint_is_begun_anew(sweep, tmp_path):
    sweep(factor_1="fail")
    left_over = tmp_path / "sweep" / "factor=1" / "s0" / "left over"
    left_over.touch()
    found = sweep()
    assert found["factor=1/s0"].state == "done"
    assert not left_over.exists()
    assert [start["words"][2] for start in starts(found["factor=1/s0"].folder)] == ["--run-dir", "--run-dir"]


def test_two_sweeps_do_not_work_in_one_folder(sweep, tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=f"^{folder}: another sweep is under way here; wait for it, or stop it$"):
            sweep()
    assert all(state.state == "done" for state in sweep().values())


def test_a_run_that_a_killed_sweep_left_in_training_is_named(sweep, tmp_path):
    sweep(factor_1="fail")
    run = tmp_path / "sweep" / "factor=1" / "s0"
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert [state.state for state in states(Sweep.open(tmp_path / "sweep"))] == ["done", "running"]
        with pytest.raises(ConfigError) as refused:
            sweep()
    assert str(refused.value) == (
        f"{run}: another process trains in this folder\n"
        "A sweep that was killed may have left it; wait for it, or stop it"
    )
    assert len(starts(run)) == 1


def test_other_runs_than_those_asked_for_are_refused_all_at_once_before_anything_starts(sweep, tmp_path):
    sweep(seeds="[0, 1]")
    with pytest.raises(ConfigError) as refused:
        sweep("training.steps=4", "data.max_text_tokens=30", seeds="[0, 1, 2]")
    everything = "factor=2/s0, factor=1/s0, factor=2/s1, factor=1/s1"
    assert str(refused.value) == (
        f"{tmp_path / 'sweep'}: it holds other runs than those asked for:\n"
        f"  {everything}: data.max_text_tokens: 79 in the run, 30 asked for\n"
        f"  {everything}: training.steps: 3 in the run, 4 asked for\n"
        "To ask anew, use another --sweep-dir, or move these runs' folders away; "
        f"for the verdict on those that are there, nanovlm compare {tmp_path / 'sweep'}"
    )
    assert not starts(tmp_path / "sweep" / "factor=2" / "s2")
    assert Sweep.open(tmp_path / "sweep").seeds == (0, 1)


def test_logging_and_hardware_may_change(sweep):
    sweep()
    found = sweep("training.log_every=2", "data.workers=1", "training.tokens_per_row=2048", "checkpoints.every=7")
    assert [len(starts(state.folder)) for state in found.values()] == [1, 1]


def test_a_stopped_run_goes_on_with_the_new_logging_and_hardware(sweep, tmp_path):
    run = tmp_path / "sweep" / "factor=2" / "s0"
    with Teller([signal.SIGINT], [run / "metrics.jsonl"]), pytest.raises(Stopped):
        sweep(factor_2="last")
    sweep("training.tokens_per_row=2048")
    assert starts(run)[1]["words"][:2] == ["train", str(run.with_name("s0.yaml"))]
    assert read_yaml(run.with_name("s0.yaml"))["training"]["tokens_per_row"] == 2048


def test_a_run_that_did_not_get_far_may_be_asked_for_otherwise(sweep):
    sweep(factor_1="fail", factor_2="fail")
    assert all(state.state == "done" for state in sweep("training.steps=4").values())


def test_a_folder_that_holds_something_else_is_refused(sweep, tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "notes.txt").touch()
    with pytest.raises(ConfigError, match=f"^{folder}: it is not empty, and holds no ablation; use another"):
        sweep()
    (folder / "notes.txt").unlink()
    sweep()
    asked = read_yaml(folder / "ablation.yaml") | {"name": "another"}
    (folder / "ablation.yaml").write_text(str(asked))
    with pytest.raises(ConfigError, match=f"^{folder}: it holds the ablation 'another'; use another --sweep-dir$"):
        sweep()


def test_a_folder_that_cannot_be_made_is_said(tmp_path, registries):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--sweep-dir .*: no folder can be made there: Not a directory"):
        run_sweep(tiny_ablation(tmp_path), tmp_path / "file" / "sweep", registries, processes())


def test_a_folder_that_holds_no_sweep_cannot_be_opened(tmp_path):
    with pytest.raises(ConfigError, match=r"it holds no ablation\.yaml, so it is no sweep's folder"):
        Sweep.open(tmp_path)
    (tmp_path / "ablation.yaml").write_text("name: question\n")
    with pytest.raises(ConfigError, match=r"ablation.yaml: it is no record of a sweep \(KeyError\('seeds'\)\)"):
        Sweep.open(tmp_path)
