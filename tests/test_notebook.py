"""The quickstart as a notebook. `.ci/run` executes all of it; what is held here takes no kernel and no minutes."""

import ast
import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nanovlm
from nanovlm import PatchGrid, load_experiment, load_plugins

ROOT = Path(__file__).parents[1]
FILE = ROOT / "experiments" / "quickstart.ipynb"
TEXT = FILE.read_text(encoding="utf-8")
CELLS = json.loads(TEXT)["cells"]
CODE = {cell["id"]: "".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"}
# One cell looks into a packed row, with the very functions that the trainer packs it with.
LOOKED_INTO = {"nanovlm.blueprint.Recipe", "nanovlm.data.loader.Preparation", "nanovlm.data.packing.pack_row"}

every_cell = pytest.mark.parametrize("cell", CODE)


def python(cell: str) -> str:
    """A cell without what IPython adds to Python: its first line if that is a cell magic, and each line's magic."""
    source = CODE[cell]
    if source.startswith("%%"):
        return source.partition("\n")[2]
    return re.sub(r"^( *)[%!].*$", r"\1pass", source, flags=re.MULTILINE)


def imported(source: str) -> list[str]:
    """Every name that a source imports, in full."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{name.name}" for name in node.names]
    return names


def test_it_is_a_notebook_as_jupyter_writes_one():
    notebook = json.loads(TEXT)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert json.dumps(notebook, indent=1, ensure_ascii=False) + "\n" == TEXT
    ids = [cell["id"] for cell in CELLS]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", name, re.ASCII) for name in ids)
    for cell in CELLS:
        assert cell["cell_type"] in ("code", "markdown")
        assert cell["source"] == "".join(cell["source"]).splitlines(keepends=True), cell["id"]


def test_no_output_is_kept_in_git():
    assert {name for cell in CELLS for name in cell} <= {
        "cell_type", "execution_count", "id", "metadata", "outputs", "source",
    }  # fmt: skip
    for cell in CELLS:
        assert not cell.get("outputs") and cell.get("execution_count") is None and not cell["metadata"], cell["id"]


@every_cell
def test_a_cell_is_python(cell):
    compile(python(cell), cell, "exec")


@every_cell
def test_a_cell_imports_public_names_that_exist(cell):
    for name in imported(python(cell)):
        module, _, attribute = name.rpartition(".")
        if name.partition(".")[0] not in ("nanovlm", "nanovlm_plugins"):
            continue
        assert name in LOOKED_INTO or (module == "nanovlm" and attribute in nanovlm.__all__), name
        assert hasattr(importlib.import_module(module), attribute), name


def test_it_needs_nothing_that_the_extra_does_not_install():
    packages = {name.partition(".")[0] for cell in CODE for name in imported(python(cell))} - sys.stdlib_module_names
    assert packages == {"nanovlm", "torch", "PIL", "matplotlib", "IPython"}


def test_the_experiments_that_it_names_exist():
    named = set(re.findall(r"experiments/[\w/.-]+\.yaml", "\n".join(CODE.values())))
    assert named
    for file in named:
        load_experiment(ROOT / file)
    pages = [page for cell in CELLS for page in re.findall(r"\]\((?!https?:)(.+?)\)", "".join(cell["source"]))]
    assert pages and [page for page in pages if not (FILE.parent / page).exists()] == []


@pytest.mark.parametrize("folder", [".", "experiments", "tests/plugins"])
def test_it_works_in_the_clones_root_wherever_it_is_started(folder, monkeypatch):
    monkeypatch.chdir(ROOT / folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # all is installed
    exec(python("install"), {})
    assert Path.cwd() == ROOT


def test_without_a_clone_it_says_what_to_fill_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as refused:
        exec(python("install"), {})
    assert str(refused.value) == f"no clone of nanovlm in {tmp_path}: set REPOSITORY above, and run this cell again"


@pytest.fixture
def projectors(tmp_path):
    """All projectors, the notebook's among them."""
    file = tmp_path / "rows.py"
    file.write_text(python("projector"), encoding="utf-8")
    return load_plugins([str(file)]).projectors


def test_its_projector_makes_a_token_of_each_row(projectors):
    rows = projectors.build("rows", {}, grid=PatchGrid(2, 3, 4), text_dim=8)
    patches = torch.randn(1, 6, 4, requires_grad=True)
    tokens = rows(patches)  # (B, M, D)
    assert tokens.shape == (1, rows.num_tokens, 8) == (1, 2, 8)
    tokens[0, 1].sum().backward()
    assert patches.grad[0].any(dim=-1).tolist() == [False, False, False, True, True, True]


def test_its_projector_has_as_many_tokens_and_weights_as_the_one_it_replaces(projectors):
    replaced = load_experiment(ROOT / "experiments/quickstart.yaml").projector
    grid = PatchGrid(4, 4, 96)  # the quickstart's
    old = projectors.build(replaced.name, replaced.options, grid=grid, text_dim=96)
    new = projectors.build("rows", {}, grid=grid, text_dim=96)
    assert new.num_tokens == old.num_tokens
    assert new.linear.weight.shape == old.linear.weight.shape


@pytest.mark.parametrize(
    ("source", "error"),
    [("assert 1 == 2, 'not so'", "AssertionError: not so"), ("import os\nos._exit(1)", "Kernel died")],
)
def test_the_check_shows_the_cell_that_fails(source, error, tmp_path):
    pytest.importorskip("nbclient", reason="pip install -e '.[notebook]'")
    notebook = json.loads(TEXT)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"][:2]
    for cell, text in zip(cells, ("import os", source), strict=True):
        cell["source"] = text
    file = tmp_path / "failing.ipynb"
    file.write_text(json.dumps(notebook | {"cells": cells}), encoding="utf-8")
    done = subprocess.run([sys.executable, ROOT / ".ci/run_notebook.py", file], capture_output=True, text=True)
    plain = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)
    assert done.returncode == 1, done.stderr
    assert source in plain and error in plain and f"{file} failed" in plain
