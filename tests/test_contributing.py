"""The walk through CONTRIBUTING: what it shows is what the commands print and write."""

import re
from pathlib import Path

import pytest
from command import nanovlm

from nanovlm.lab import load_ablation
from nanovlm.scaffold import scaffold
from nanovlm.testing import CHECKS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def shown(command: str) -> str:
    """What the page says that a command prints."""
    (found,) = [text for _, text in BLOCKS if text.startswith(f"$ {command}\n")]
    return found.partition("\n")[2]


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """An empty clone, in which we stand."""
    for folder in ("plugins", "experiments", "tests/plugins"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "nanovlm"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nanovlm.scaffold.writer._is_installed", lambda clone: True)
    return tmp_path


def test_what_nanovlm_new_prints(clone):
    assert nanovlm("new", "projector", "gated_mlp").out == shown("nanovlm new projector gated_mlp")


def test_the_files_shown_are_those_that_it_writes(clone):
    scaffold("projector", "gated_mlp", clone)
    texts = [text for _, text in BLOCKS]
    assert (clone / "plugins" / "gated_mlp.py").read_text(encoding="utf-8") in texts
    assert (clone / "experiments" / "gated_mlp.yaml").read_text(encoding="utf-8") in texts


def test_the_package_shown_is_the_one_that_it_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert nanovlm("new", "projector", "gated_mlp", "--package").out == shown(
        "nanovlm new projector gated_mlp --package"
    )


def test_the_checks_shown_are_those_of_a_projector():
    listed = re.findall(r"^│ (\S.*?) +│ (\w+) +│", shown("nanovlm check gated_mlp"), re.MULTILINE)
    assert [name for name, _ in listed] == [check.name for check in CHECKS if "projector" in check.kinds]
    assert {result for _, result in listed} <= {"passed", "skipped"}


def test_the_commands_that_renew_the_tables_are_those_that_it_prints():
    printed = re.findall(r"^  (nanovlm (?:list|schema) .*)$", shown("nanovlm new projector gated_mlp"), re.MULTILINE)
    (block,) = [text for language, text in BLOCKS if language == "bash" and "ruff check" in text]
    assert printed
    assert [line for line in block.splitlines() if line.startswith("nanovlm ")] == printed


def test_the_ablation_shown_asks_about_it(clone):
    scaffold("projector", "gated_mlp", clone)
    (text,) = [text for language, text in BLOCKS if language == "yaml" and "ablate:" in text]
    folder = clone / "experiments" / "ablations"
    folder.mkdir()
    (folder / "gated_mlp.yaml").write_text(text, encoding="utf-8")
    (clone / "experiments" / "quickstart.yaml").write_text((ROOT / "experiments" / "quickstart.yaml").read_text())
    ablation = load_ablation(folder / "gated_mlp.yaml")
    assert len(ablation.variants) == 2
