"""Bounded memory: `pytest -m slow tests/data/test_long_stream.py` (four to eight minutes for each of the two)."""

import json
import resource
from pathlib import Path

import pytest
from tiny import tiny_experiment

from nanovlm import train

ROWS = 200_000
PAGE = resource.getpagesize()
PICTURE = 20_000  # bytes a row, which nothing could keep: 4 GB in all

PLUGIN = f"""
import os
from PIL import Image
from nanovlm import ComponentConfig, Dataset, Sample, Tracker, Turn, hookimpl
from nanovlm.data.dataset import Row

class Endless(Dataset):
    class Config(ComponentConfig):
        pass
    streaming = True
    def __init__(self, config, split):
        self.split = split
    def stream(self):
        for i in range({ROWS}):
            yield Row(f"row-{{i}}", (i, os.urandom({PICTURE})))
    def sample(self, row):
        number, noise = row.content
        picture = Image.frombytes("RGB", (16, 16), noise[: 16 * 16 * 3])
        return Sample([picture], [Turn("Which?", str(number % 10))], row.id)

class Resident(Tracker):
    class Config(ComponentConfig):
        pass
    def step_finished(self, metrics):
        pages = int(open("/proc/self/statm").read().split()[1])
        with open(self.run.folder / "resident", "a") as log:
            log.write(f"{{pages}} {{metrics['samples']}}\\n")

@hookimpl
def register_datasets(register):
    register("endless", Endless)

@hookimpl
def register_trackers(register):
    register("resident", Resident)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc, where Linux tells a process's memory")
@pytest.mark.parametrize("workers", [0, 2])
def test_two_hundred_thousand_rows_train_in_flat_memory(tmp_path, workers):
    plugin = tmp_path / "endless.py"
    plugin.write_text(PLUGIN)
    experiment = tiny_experiment(
        "data.train=[{name: endless}]", "trackers=[resident]", "benchmarks=[]", f"data.workers={workers}",
        f"training.samples={ROWS}", "training.samples_per_step=256", "training.tokens_per_row=4096",
    )  # fmt: skip
    folder = tmp_path / "run"
    summary = train(experiment, folder, plugin_files=[str(plugin)])
    assert summary["samples"] == ROWS
    resident = [int(line.split()[0]) * PAGE / 1e6 for line in (folder / "resident").read_text().splitlines()]  # MB
    assert len(resident) >= 100
    settled, last = resident[len(resident) // 10], resident[-1]
    print(json.dumps({"workers": workers, "settled": settled, "most": max(resident), "last": last}))
    assert last < settled + 50  # of 4,000 MB that were read
