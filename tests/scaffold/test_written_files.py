"""What `nanovlm new` writes is right as it stands, for every kind and every form."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import test_experiments
from newly_written import KINDS, ROOT

from nanovlm import CONTRACT, TextConfig
from nanovlm.blueprint import Recipe
from nanovlm.training.launch import train_recipe


def run(*command: object, cwd: Path, **environment: str) -> None:
    words = [sys.executable, "-m", *map(str, command)]
    done = subprocess.run(words, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not shutil.which(tool), reason=f"{tool} comes with the extra `lint`")


def test_which_files(new):
    name, package = new.name, f"src/nanovlm_{new.name}/__init__.py"
    expected = {
        "clone": {f"plugins/{name}.py", f"tests/plugins/test_{name}.py", f"experiments/{name}.yaml"},
        "flat": {f"{name}.py", f"test_{name}.py", f"{name}.yaml"},
        "package": {
            package, f"tests/test_{name}.py", f"experiments/{name}.yaml",
            "pyproject.toml", "README.md", ".gitignore", ".github/workflows/ci.yml",
        },
    }  # fmt: skip
    assert {str(file.relative_to(new.folder)) for file in new.written.files} == expected[new.form]
    assert all(file.is_file() for file in new.written.files)


@needs("ruff")
@pytest.mark.parametrize("command", [("check", "--no-cache"), ("format", "--no-cache", "--diff")], ids=lambda c: c[0])
def test_ruff_finds_nothing(command, everything):
    """With the project's settings, or a package's own."""
    folders = {new.folder: new.form for new in everything.values()}
    for folder, form in folders.items():
        if form == "package":
            run("ruff", *command, ".", cwd=folder)
        else:
            run("ruff", *command, "--config", "pyproject.toml", folder, cwd=ROOT)


@needs("mypy")
def test_mypy_finds_nothing(everything, pytestconfig, tmp_path):
    """With a package's settings, which are the project's (see test_package.py)."""
    settings = everything["projector", "package"].folder / "pyproject.toml"
    files = [new.file(".py") for new in everything.values()]
    places = [file.parents[1] if file.name == "__init__.py" else file.parent for file in files]
    path = os.pathsep.join(dict.fromkeys(map(str, places)))
    kept = getattr(pytestconfig, "cache", None)  # there is none with `-p no:cacheprovider`
    cache = kept.mkdir("mypy") if kept else tmp_path  # the first time it reads all of nanovlm and torch
    run("mypy", "--config-file", settings, "--cache-dir", cache, *files, cwd=ROOT, MYPYPATH=path)


def test_the_tests_that_it_wrote_pass(everything, tmp_path):
    """The contract's checks of the flat ones are left out: they are the packages' over again."""
    tests = [new.file("test") for new in everything.values()]
    sources = [str(install(new.folder, tmp_path)) for new in everything.values() if new.form == "package"]
    chosen = ("-k", "not (contract and test_my_)", "-p", "no:cacheprovider")
    path = os.pathsep.join([str(tmp_path), *sources])
    run("pytest", "-q", *chosen, *tests, cwd=tests[0].parents[3], PYTHONPATH=path)


def install(package: Path, site: Path) -> Path:
    """Leave in ``site`` what an installer would, and return the folder of its modules."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{name} = {value}" for name, value in project["entry-points"]["nanovlm"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[nanovlm]", *lines]))
    return package / "src"


def test_it_is_found_by_its_name_and_says_its_contract(new, new_registries):
    entries = [entry for registry in new_registries for entry in registry if entry.name == new.name]
    (entry,) = entries
    assert Path(entry.plugin.path) == new.file(".py").resolve()
    assert f"nanovlm_contract = {CONTRACT}" in new.file(".py").read_text()
    assert entry.cls.__name__ == "".join(word.capitalize() for word in new.name.split("_"))


def test_its_tests_say_that_they_are_to_be_rewritten(new):
    first = new.file("test").read_text().splitlines()[0]
    assert first == f'"""Tests of the first version of {new.name}: rewrite them as you rewrite it."""'


def test_it_is_short_and_says_what_to_change_first(new):
    source = new.file(".py").read_text()
    assert len(source.splitlines()) <= 110
    assert "first" in source
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef) and node.name == "Config"]
    assert len(classes) == 1


def test_the_experiment_writes_every_option_out(new, new_registries):
    recipe = Recipe.of(new.experiment(), new_registries)
    parts = [*recipe.blueprint.parts, *recipe.datasets, *recipe.benchmarks, *recipe.trackers]
    experiment = new.experiment()
    choices = [
        experiment.vision_encoder, experiment.projector, experiment.language_decoder,
        *experiment.data.train, *experiment.benchmarks, *experiment.trackers,
    ]  # fmt: skip
    used = [(part, choice) for part, choice in zip(parts, choices, strict=True) if part.name == new.name]
    assert len(used) == (2 if new.kind == "dataset" else 1)
    for part, choice in used:
        assert set(type(part.config).model_fields) - set(TextConfig.model_fields) <= choice.options.keys()
    assert experiment.name == new.name


def test_the_experiment_trains_at_tiny_size(new, new_registries, tmp_path, monkeypatch):
    monkeypatch.setattr(test_experiments, "REGISTRIES", new_registries)
    overrides = [text for text in test_experiments.tiny_overrides(new.experiment()) if not text.startswith("trackers")]
    summary = train_recipe(Recipe.of(new.experiment(*overrides), new_registries), tmp_path / "run")
    assert (summary["name"], summary["steps"]) == (new.name, 2)
    assert len(summary["benchmarks"]) == 1
    if new.kind == "tracker":
        assert len((tmp_path / "run" / "steps.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_clone_asks_its_own_quickstart_and_others_the_shipped_one(kind, everything):
    extended = {form: everything[kind, form].file(".yaml").read_text() for form in ("clone", "flat", "package")}
    assert "\nextends: quickstart.yaml\n" in extended["clone"]
    assert "\nextends: quickstart\n" in extended["flat"]
    assert "\nextends: quickstart\n" in extended["package"]
    header = (ROOT / "experiments" / "quickstart.yaml").read_text().splitlines()[0]
    assert [text.splitlines()[0] == header for text in extended.values()] == [True, False, False]
