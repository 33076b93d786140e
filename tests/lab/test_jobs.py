"""Runs are started one after another, side by side with a part of the machine each, or as a cluster's jobs."""

import os
import signal
import sys
import time

import pytest
import torch
from sweeping import Teller, processes, program, signals, starts, tiny_ablation

from nanovlm import ConfigError
from nanovlm.lab.sweep import conductor
from nanovlm.lab.sweep.conductor import run_sweep
from nanovlm.lab.sweep.jobs import Processes, Remote, Submitit, environments, submit_options
from nanovlm.training.interrupts import Stopped


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    monkeypatch.setattr(conductor, "POLL", 0.02)


@pytest.fixture
def gpus(monkeypatch):
    """``gpus(count, CUDA_VISIBLE_DEVICES)`` are in this machine."""

    def gpus(count, visible=None):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return gpus


def test_one_run_at_a_time_has_the_whole_machine(gpus):
    gpus(2)
    assert environments(1, "cpu") == environments(1, "cuda") == [{}]


def test_side_by_side_each_has_a_gpu_of_its_own(gpus):
    gpus(3)
    assert environments(2, "cuda") == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]


@pytest.mark.parametrize("visible", ["2,5", "GPU-8f1, GPU-77a"])
def test_only_the_gpus_that_this_process_may_use_are_given_away(gpus, visible):
    gpus(2, visible)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments(2, "cuda")] == visible.replace(" ", "").split(",")


def test_more_runs_than_gpus_are_refused(gpus):
    gpus(2)
    with pytest.raises(
        ConfigError, match=r"^--jobs 3: each run takes a GPU of its own, and there are 2 here; use --jobs 2$"
    ):
        environments(3, "cuda")
    gpus(1, "5")
    with pytest.raises(ConfigError, match=r"there is one here \(CUDA_VISIBLE_DEVICES=5\); use --jobs 1$"):
        environments(2, "cuda")
    with pytest.raises(ConfigError, match=r"there is one here"):
        environments(2, "mps")


@pytest.mark.parametrize(("threads", "count", "share"), [(8, 2, "4"), (7, 3, "2"), (1, 4, "1")])
def test_on_a_cpu_they_share_the_threads(monkeypatch, threads, count, share):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert environments(count, "cpu") == [{"OMP_NUM_THREADS": share}] * count


def test_as_many_runs_as_there_are_slots_train_at_once_each_in_its_own(tmp_path, registries):
    """The stand-ins end when both are told to; with one slot the second would not begin."""
    gpus = [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "6"}]
    runner = Processes(gpus, program(factor_1="last", factor_2="last"))
    runs = [tmp_path / "sweep" / f"factor={factor}" / "s0" for factor in (2, 1)]
    with Teller([signal.SIGINT], [run / "metrics.jsonl" for run in runs]), pytest.raises(Stopped):
        run_sweep(tiny_ablation(tmp_path, factors="[1, 2, 4]"), tmp_path / "sweep", registries, runner)
    assert sorted(starts(run)[0]["CUDA_VISIBLE_DEVICES"] for run in runs) == ["4", "6"]
    assert not starts(tmp_path / "sweep" / "factor=4" / "s0")


def test_a_slot_is_free_again_when_its_run_has_ended(tmp_path, registries):
    runner = Processes([{"OMP_NUM_THREADS": "3"}, {"OMP_NUM_THREADS": "3"}], program(factor_2="fail"))
    found = run_sweep(tiny_ablation(tmp_path, seeds="[0, 1, 2]"), tmp_path / "sweep", registries, runner)
    assert [state.state for state in found] == ["failed", "done"] * 3
    assert {starts(state.folder)[0]["OMP_NUM_THREADS"] for state in found} == {"3"}


def test_a_log_begins_with_the_command(tmp_path):
    job = processes().start(["train", "a b.yaml", "--run-dir", str(tmp_path / "run")], tmp_path / "new" / "run.log", 0)
    while job.status() is None:
        time.sleep(0.01)
    first = (tmp_path / "new" / "run.log").read_text().splitlines()[0]
    assert first.startswith(f"$ {sys.executable} ")
    assert first.endswith(f" train 'a b.yaml' --run-dir {tmp_path / 'run'}")


@pytest.fixture
def local(tmp_path, registries):
    """``local(slots=, options=, factor_1="fail")``: a sweep through submitit's local executor."""

    def local(slots=1, options=None, **behaviours):
        runner = Submitit("local", tmp_path / "sweep" / "submitit", options or {}, slots, program(**behaviours))
        return run_sweep(tiny_ablation(tmp_path), tmp_path / "sweep", registries, runner)

    return local


def test_jobs_are_handed_to_submitit(local, tmp_path):
    found = local(slots=2, factor_1="fail")
    assert [(state.state, state.reason) for state in found] == [("done", ""), ("failed", "ValueError: a bug")]
    assert "one line of output" in found[0].log.read_text()
    assert list((tmp_path / "sweep" / "submitit").glob("*_log.out"))


def test_a_job_is_told_once_to_end_and_its_run_can_be_gone_on_with(local, tmp_path, registries):
    run = tmp_path / "sweep" / "factor=2" / "s0"
    with Teller([signal.SIGINT], [run / "metrics.jsonl"]), pytest.raises(Stopped):
        local(factor_2="last")
    assert signals(run) == ["SIGTERM"]
    run_sweep(tiny_ablation(tmp_path), tmp_path / "sweep", registries, processes())
    assert [start["words"][2] for start in starts(run)] == ["--run-dir", "--resume"]


@pytest.fixture
def _handlers():
    """As they were, after a test that sets them."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
def test_a_job_whose_time_is_up_tells_its_run_to_end(tmp_path):
    """submitit has a cluster say so by SIGUSR2."""
    run, experiment = tmp_path / "factor=2" / "s0", tmp_path / "factor=2" / "s0.yaml"
    experiment.parent.mkdir()
    experiment.touch()
    command = [*program(factor_2="last"), "train", str(experiment), "--run-dir", str(run)]
    with Teller([signal.SIGUSR2], [run / "metrics.jsonl"]):
        assert Remote(command, tmp_path / "log")() == 1
    assert signals(run) == ["SIGTERM"]
    assert "stopped after step 2" in (tmp_path / "log").read_text()


def test_a_job_that_was_killed_has_failed(local, monkeypatch):
    submitted = Submitit.start

    def killed(self, arguments, log, slot):
        job = submitted(self, arguments, log, slot)
        os.kill(int(job.job.job_id), signal.SIGKILL)
        return job

    monkeypatch.setattr(Submitit, "start", killed)
    monkeypatch.setattr("submitit.LocalJob._results_timeout_s", 0.1)
    assert [state.state for state in local()] == ["failed", "failed"]
    assert all("has not produced any output" in state.reason for state in local())


def test_without_submitit_it_is_said_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r'--submit needs the library submitit .*: pip install "nanovlm\[submitit\]"'):
        Submitit("local", tmp_path, {}, 1)


def test_where_there_is_no_cluster_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    runner = Submitit("slurm", tmp_path / "submitit", {"timeout_min": 60}, 1)
    with pytest.raises(ConfigError, match=r"^--submit slurm: Could not detect .*srun"):
        runner.start(["train"], tmp_path / "log", 0)


def test_a_cluster_must_be_told_how_long_a_run_may_take(tmp_path):
    """submitit's own default is five minutes."""
    with pytest.raises(ConfigError, match=r"--submit slurm: how many minutes may a run take\? .*timeout_min=240"):
        Submitit("slurm", tmp_path, {"slurm_partition": "gpu"}, 1)
    assert Submitit("slurm", tmp_path, {"slurm_time": "1-00:00:00"}, 1).slots == 1


@pytest.mark.parametrize(
    ("options", "message"), [({"wrong_option": 1}, "Unknown executor 'wrong'"), ({"mem_gb": "much"}, "mem_gb")]
)
def test_an_option_that_submitit_does_not_know_is_refused_in_its_words(tmp_path, options, message):
    runner = Submitit("local", tmp_path / "submitit", options, 1)
    with pytest.raises(ConfigError, match=f"^--submit-option: .*{message}"):
        runner.start(["train"], tmp_path / "log", 0)


def test_options_are_read_as_yaml():
    assert submit_options(["timeout_min=240", "slurm_partition=gpu", "slurm_setup=[a, b=c]"]) == {
        "timeout_min": 240,
        "slurm_partition": "gpu",
        "slurm_setup": ["a", "b=c"],
    }
    with pytest.raises(ConfigError, match=r"^--submit-option gpu: expected key=value, for example timeout_min=240$"):
        submit_options(["gpu"])
