"""Whole runs on several processes, started by torchrun, against the same run on one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from finished import Finished
from tiny import tiny_experiment

from nanovlm import resume, train

# Seven samples a step, so that shares differ; a component that thaws; held-out samples and questions on the way.
OVERRIDES = (
    "training.steps=7", "training.samples_per_step=7", "training.tokens_per_row=150", "training.max_grad_norm=0.5",
    "training.schedule=constant", "training.frozen_until_step.vision_encoder=3",
    "data.validation={share: 0.1, every: 3}", "benchmarks.0.every=4", "checkpoints.every=2",
)  # fmt: skip
MORTAL = '''
"""Shapes, in which the second of two processes dies, once, on the way."""
import os, signal
from nanovlm import hookimpl, load_plugins

Shapes = load_plugins().datasets.find("shapes").cls

class Mortal(Shapes):
    def __getitem__(self, index):
        step_of_death = os.path.exists(os.environ["MARKER"])
        if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and step_of_death:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)

@hookimpl
def register_datasets(register):
    register("mortal", Mortal)
'''


def torchrun(folder: Path, experiment: dict, *options: str, restarts: int = 0, **environment: str) -> str:
    """What two processes printed that trained ``experiment`` in ``folder``."""
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(experiment))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        f"--max-restarts={restarts}", "-m", "nanovlm", "train", str(file), "--run-dir", str(folder), *options,
    ]  # fmt: skip
    given = {"PATH": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path)} | environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=given)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def as_tree(*overrides: str) -> dict:
    return tiny_experiment(*OVERRIDES, *overrides).model_dump()


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Finished:
    folder = tmp_path_factory.mktemp("one") / "run"
    return Finished(folder, train(tiny_experiment(*OVERRIDES), folder))


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Finished:
    folder = tmp_path_factory.mktemp("two") / "run"
    printed = torchrun(folder, as_tree("trackers=[console]"))
    assert printed.count("samples in 7 steps") == printed.count("run folder: ") == 1  # one of them speaks
    return Finished(folder, json.loads((folder / "summary.json").read_text()))


def check_close(found: Finished, expected: Finished) -> None:
    for name in ("loss", "grad_norm", "learning_rate/projector", "step"):
        assert found.metric(name) == pytest.approx(expected.metric(name), rel=1e-5)
    evaluations = [run.events("evaluation") for run in (found, expected)]
    for mine, theirs in zip(*evaluations, strict=True):
        assert mine.get("validation_loss", 0) == pytest.approx(theirs.get("validation_loss", 0), rel=1e-5)
        assert mine.get("accuracy") == theirs.get("accuracy")
    for name, tensor in found.tensors().items():
        assert (tensor - expected.tensors()[name]).abs().max() < 1e-4, name


def test_two_processes_train_as_one_does(one, two):
    check_close(two, one)
    for key in ("samples", "tokens", "skipped", "given", "steps", "best_step", "benchmarks"):
        assert two.summary[key] == one.summary[key]
    assert (two.summary["ranks"], one.summary["ranks"]) == (2, 1)
    assert two.provenance()["data_order"] == one.provenance()["data_order"]
    assert two.metric("given/data.train.0") == one.metric("given/data.train.0")


def test_a_run_goes_on_with_another_number_of_processes(one, two, tmp_path):
    longer = tmp_path / "longer"
    train(tiny_experiment(*OVERRIDES, "training.steps=9"), longer)
    resume(two.folder, ["training.steps=9"])
    check_close(two, Finished(longer, {}))
    assert two.metric("given/data.train.0")[-1] == two.summary["samples"] + 2 * 7


def test_a_process_that_dies_costs_no_run(one, tmp_path):
    folder, plugin = tmp_path / "run", tmp_path / "mortal.py"
    plugin.write_text(MORTAL)
    experiment = as_tree()
    experiment["data"]["train"][0]["name"] = "mortal"
    marker = folder / "checkpoints" / "00000004"
    torchrun(folder, experiment, "--plugin", str(plugin), restarts=1, MARKER=str(marker))
    check_close(Finished(folder, {}), one)
    assert json.loads((folder / "summary.json").read_text())["samples"] == one.summary["samples"]
