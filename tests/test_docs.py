"""What the pages promise, they promise as code: here it runs. CONTRIBUTING's walk is in test_contributing.py."""

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
NAMES = ("README.md", "CONTRIBUTING.md", "experiments/README.md", "plugins/README.md", "CHANGELOG.md")
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
README = PAGES["README.md"]
WITH_EXPERIMENTS = ("README.md", "experiments/README.md")
REGISTRIES = load_plugins()
MOST_LINES = 1250  # to understand one training step


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def projector() -> str:
    """The projector that the README shows."""
    (found,) = [block for block in blocks(README, "python") if "register_projectors" in block]
    return found


@pytest.fixture
def dropped_in(tmp_path, monkeypatch):
    """The README's projector as a file in the plugins' folder."""
    (tmp_path / "two_layer.py").write_text(projector(), encoding="utf-8")
    monkeypatch.setattr(nanovlm_plugins, "__path__", [*nanovlm_plugins.__path__, str(tmp_path)])
    yield
    sys.modules.pop("nanovlm_plugins.two_layer", None)


def test_the_projector_shown_has_25_lines_at_most():
    assert len(projector().splitlines()) <= 25


def test_the_projector_is_found_in_its_folder_and_trains_by_name(dropped_in, tmp_path):
    summary = train(tiny_experiment("projector=two_layer"), tmp_path / "run")
    assert summary["steps"] == 3
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("page", WITH_EXPERIMENTS)
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


MADE_BY_THE_READER = {
    "plugins/two_layer.py", "experiments/tom.yaml",
    *(f"{folder}/{name}" for folder, name in (
        ("plugins", "gated_mlp.py"), ("experiments", "gated_mlp.yaml"), ("experiments/ablations", "gated_mlp.yaml"),
        ("tests/plugins", "test_gated_mlp.py"),
    )),
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_is_there(page):
    named = set(re.findall(r"`((?:nanovlm|plugins|experiments|tests|\.ci)/[\w./]*)`", PAGES[page]))
    assert [path for path in sorted(named - MADE_BY_THE_READER) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_somewhere(page):
    """And to a heading, where it names one."""
    targets = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", PAGES[page])
    for file, heading in targets:
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), file
        if heading:
            assert heading in anchors(path.read_text(encoding="utf-8")), f"{file}#{heading}"


def anchors(page: str) -> set[str]:
    """What links to a page's headings are called."""
    titles = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
