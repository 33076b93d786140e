"""What README and CONTRIBUTING promise, they promise as code: here it runs."""

import ast
import re
import sys
from pathlib import Path

import nanovlm_plugins
import pytest
from tiny import tiny_experiment

from nanovlm import load_experiment, load_plugins, train
from nanovlm.lab import load_ablation, plan_ablation

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md"))
PAGES = {"README.md": README, "CONTRIBUTING.md": CONTRIBUTING}
REGISTRIES = load_plugins()
MOST_LINES = 1250  # to understand one training step


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def projector(page: str) -> str:
    """The projector that a page walks through."""
    (found,) = [block for block in blocks(page, "python") if "register_projectors" in block]
    return found


@pytest.fixture
def dropped_in(tmp_path, monkeypatch):
    """The README's projector as a file in the plugins' folder."""
    (tmp_path / "two_layer.py").write_text(projector(README), encoding="utf-8")
    monkeypatch.setattr(nanovlm_plugins, "__path__", [*nanovlm_plugins.__path__, str(tmp_path)])
    yield
    sys.modules.pop("nanovlm_plugins.two_layer", None)


def test_both_pages_walk_through_the_same_projector_of_25_lines_at_most():
    assert projector(README) == projector(CONTRIBUTING)
    assert len(projector(README).splitlines()) <= 25


def test_the_projector_is_found_in_its_folder_and_trains_by_name(dropped_in, tmp_path):
    summary = train(tiny_experiment("projector=two_layer"), tmp_path / "run")
    assert summary["steps"] == 3
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_its_own_test_passes(dropped_in):
    (test,) = [block for block in blocks(CONTRIBUTING, "python") if "def test_" in block]
    names: dict = {}
    exec(compile(test, "CONTRIBUTING.md", "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert tests
    for each in tests:
        each()


@pytest.mark.parametrize("page", PAGES)
def test_every_experiment_shown_is_one(page, dropped_in, tmp_path):
    shown = blocks(PAGES[page], "yaml")
    assert shown
    for i, text in enumerate(shown):
        file = tmp_path / f"shown-{i}.yaml"
        if "ablate:" in text:
            file.write_text(text.replace("extends: ", f"extends: {ROOT}/experiments/ablations/"), encoding="utf-8")
            plan_ablation(load_ablation(file), REGISTRIES)
        else:
            file.write_text(text.replace("extends: ", f"extends: {ROOT}/experiments/"), encoding="utf-8")
            load_experiment(file)


def test_the_ablation_shown_is_the_one_that_is_there(tmp_path):
    shown = next(block for block in blocks(README, "yaml") if "ablate:" in block)
    file = tmp_path / "pixel_shuffle.yaml"
    file.write_text(shown.replace("../", f"{ROOT}/experiments/"), encoding="utf-8")
    there = load_ablation(ROOT / "experiments" / "ablations" / "pixel_shuffle.yaml")
    assert load_ablation(file) == there


def test_the_python_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    (code,) = [block for block in blocks(README, "python") if "load_experiment" in block]
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 10
    short = code.replace("training.steps=300", "training.steps=2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    exec(compile(ast.parse(short), "README.md", "exec"), {})
    assert (tmp_path / "runs/quickstart/latest/model/config.json").is_file()
    assert "shapes: accuracy" in capsys.readouterr().out


def test_the_reading_order_is_true_and_short():
    order = README.partition("## Reading order")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", order, re.MULTILINE)
    assert len(rows) >= 8
    for file, lines in rows:
        assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) == pytest.approx(int(lines), rel=0.1), file
    assert sum(int(lines) for _, lines in rows) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_is_there(page):
    made_by_the_reader = {
        "plugins/two_layer.py", "experiments/two_layer.yaml", "tests/plugins/test_two_layer.py", "experiments/tom.yaml",
    }  # fmt: skip
    named = set(re.findall(r"`((?:nanovlm|plugins|experiments|tests|\.ci)/[\w./]*)`", PAGES[page]))
    assert named
    assert [path for path in sorted(named - made_by_the_reader) if not (ROOT / path).exists()] == []
