"""Results that are kept, and the README's tables, which are made from them."""

import json
import platform
import re
from dataclasses import asdict, fields, replace
from datetime import datetime
from pathlib import Path

import pytest
import torch

from nanovlm import ConfigError
from nanovlm.bench import tables
from nanovlm.bench.results import Result, now, read_results
from nanovlm.bench.tables import BEGIN, END, readme_block
from nanovlm.hardware import available_memory, cpu_name, hardware, measured_peak

ROOT = Path(__file__).parents[2]
KEPT = sorted((ROOT / "experiments" / "results").glob("*.json"))
PARTS = [table.part for table in tables.TABLES]

COMPARED = {"precision": "fp32", "samples": 4, "ours_seconds": 3.0, "upstream_seconds": 4.0, "ratio": 0.7512}
RESULT = Result(
    part="against",
    experiment="baseline",
    command="nanovlm bench experiments/baseline.yaml --against nanoVLM",
    synthetic=True,
    hardware={"label": "two abaci"},
    figures=COMPARED,
    date="2026-01-02T03:04:05+00:00",
)


def test_a_result_survives_its_file(tmp_path):
    RESULT.write(tmp_path / "deep" / "a.json")
    assert read_results(tmp_path / "deep") == [RESULT]


def test_results_come_by_the_names_of_their_files(tmp_path):
    for name in ("b", "a"):
        replace(RESULT, experiment=name).write(tmp_path / f"{name}.json")
    assert [result.experiment for result in read_results(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize("content", ["{", "[]", '{"part": "step"}', json.dumps(asdict(RESULT) | {"more": 1})])
def test_a_file_that_is_no_result(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ConfigError, match=r"a\.json: is no result of `nanovlm bench` \(an object of part, experiment"):
        read_results(tmp_path)


def test_a_folder_without_results(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no result; run this from the root of a checkout, or keep one"):
        read_results(tmp_path)


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--output .*a\.json: cannot be written: "):
        RESULT.write(tmp_path / "file" / "a.json")


def test_dates_are_utc():
    assert datetime.fromisoformat(now()).utcoffset().total_seconds() == 0


def test_a_result_is_a_row_of_its_table():
    assert "| two abaci | baseline | fp32 | 4 | 3 | 4 | 0.75 |" in readme_block([RESULT]).splitlines()


def test_every_table_has_a_row_for_the_h200_that_says_whether_it_was_measured():
    block = readme_block([RESULT])
    assert len(re.findall(r"^\| one H200 \| not measured \|", block, re.MULTILINE)) == len(PARTS)
    measured = replace(RESULT, hardware={"label": "one NVIDIA H200"})
    assert len(re.findall(r"^\| one H200 \| not measured \|", readme_block([measured]), re.MULTILINE)) == len(PARTS) - 1


def test_all_rows_of_a_table_have_as_many_cells():
    results = read_results(ROOT / "experiments" / "results")
    for table in tables.TABLES:
        rows = [line for line in table.lines(results) if line.startswith("|")]
        assert len({line.count("|") for line in rows}) == 1, table.part


def test_the_readme_holds_exactly_the_tables_that_are_made_from_the_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.count(BEGIN) == readme.count(END) == 1
    block = BEGIN + readme.partition(BEGIN)[2].partition(END)[0] + END
    assert block == readme_block(read_results(ROOT / "experiments" / "results"))


def test_results_are_kept():
    assert {read.part for read in read_results(ROOT / "experiments" / "results")} >= {"step", "loader", "against"}


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.stem)
def test_a_kept_result_says_what_was_measured_on_what_and_how(file):
    content = json.loads(file.read_text(encoding="utf-8"))
    assert set(content) == {field.name for field in fields(Result)}
    assert file.stem == f"{content['experiment']}-{content['part']}-{content['hardware']['device']}"
    assert content["command"].startswith(f"nanovlm bench experiments/{content['experiment']}.yaml")
    assert content["part"] in PARTS
    assert content["hardware"].keys() >= {"label", "device", "cpu", "cpu_cores", "threads", "torch", "python"}
    assert not re.search(r"\"/|[ =]/|~/", file.read_text(encoding="utf-8"))  # no path of a machine


def test_hardware_names_processor_and_versions_and_no_machine():
    found = hardware(torch.device("cpu"))
    assert found["label"] == f"{cpu_name()}, 1 thread"
    assert found["torch"] == torch.__version__
    text = json.dumps(found)
    assert platform.node() not in text
    assert str(Path.home()) not in text


def test_the_peak_of_a_cpu_is_measured():
    """More threads or larger matrices than these are not faster by a factor."""
    peak = measured_peak(torch.device("cpu"), torch.float32)
    assert 1e9 < peak < 1e13


def test_available_memory_is_less_than_the_machine_has():
    total = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    assert 0 < available_memory(torch.device("cpu")) < 1.1 * total
