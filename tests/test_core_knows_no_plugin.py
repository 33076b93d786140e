"""The core imports nothing from plugins/, and names no component: a plugin can be removed without touching it."""

import ast
from pathlib import Path

import pytest

import nanovlm
from nanovlm import load_plugins

CORE = Path(nanovlm.__file__).parent
FILES = sorted(CORE.rglob("*.py"))
NAMES = {entry.name for registry in load_plugins() for entry in registry}
ALLOWED = {
    ("plugins.py", "nanovlm_plugins"),  # where to look
    ("experiment.py", "console"),  # what is shown by default
    *(("upstream.py", name) for name in ("siglip", "pixel_shuffle", "smollm2")),  # what reads nanoVLM's checkpoints
}

every_file = pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(CORE)) for file in FILES])


def texts(tree: ast.Module) -> set[str]:
    """Every string of the code, docstrings aside."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs)
    return {node.value for node in constants if isinstance(node.value, str)}


def imports(tree: ast.Module) -> set[str]:
    """The top of every module that is imported, wherever in the file."""
    named = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    named += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in named}


def test_the_check_itself_sees_what_it_looks_for():
    tree = ast.parse(
        '"""siglip"""\ndef f():\n    """siglip"""\n    from nanovlm_plugins.a import b\n    return {"mmstar": 1}'
    )
    assert texts(tree) == {"mmstar"}
    assert imports(tree) == {"nanovlm_plugins"}
    assert {"siglip", "mmstar", "console"} <= NAMES


@every_file
def test_no_file_of_the_core_imports_a_plugin(file):
    found = imports(ast.parse(file.read_text(encoding="utf-8")))
    assert found.isdisjoint({"plugins", "nanovlm_plugins"})


@every_file
def test_no_file_of_the_core_names_a_component(file):
    found = {text for text in texts(ast.parse(file.read_text(encoding="utf-8"))) if text in NAMES | {"nanovlm_plugins"}}
    assert {(file.name, text) for text in found} <= ALLOWED


def test_what_is_allowed_is_needed():
    found = {(file.name, text) for file in FILES for text in texts(ast.parse(file.read_text(encoding="utf-8")))}
    assert found >= ALLOWED
