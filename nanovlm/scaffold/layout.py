"""Which files a new component takes, and where: in a clone of nanovlm, in any other folder, or as a package."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanovlm.errors import ConfigError

Form = Literal["clone", "flat", "package"]

FOLDERS = ("plugins", "experiments", "tests")  # of a clone


@dataclass(frozen=True)
class Layout:
    """The files of one component, as (template, path) below ``folder``."""

    form: Form
    folder: Path
    component: str
    test: str
    experiment: str
    others: tuple[tuple[str, str], ...] = ()

    def files(self, kind: str) -> list[tuple[str, Path]]:
        named = (
            (f"component/{kind}.py.jinja", self.component),
            (f"test/{kind}.py.jinja", self.test),
            (f"experiment/{kind}.yaml.jinja", self.experiment),
            *self.others,
        )
        return [(template, self.folder / path) for template, path in named]


def choose_layout(name: str, folder: Path, package: bool) -> Layout:
    """Where the files of the component ``name`` go. A ConfigError where a clone has its own folders for them."""
    if package:
        return _package(name, folder / distribution_of(name))
    if is_clone(folder):
        return Layout(
            "clone", folder, f"plugins/{name}.py", f"tests/plugins/test_{name}.py", f"experiments/{name}.yaml"
        )
    whole = folder.resolve()
    for root in whole.parents:
        if is_clone(root) and whole.relative_to(root).parts[0] in (*FOLDERS, "nanovlm"):
            raise ConfigError(
                f"{folder} lies in a clone of nanovlm, where a component has its places: name the clone's own folder, "
                f"--into {root}, or use --package"
            )
    return Layout("flat", folder, f"{name}.py", f"test_{name}.py", f"{name}.yaml")


def _package(name: str, folder: Path) -> Layout:
    return Layout(
        "package",
        folder,
        f"src/{package_of(name)}/__init__.py",
        f"tests/test_{name}.py",
        f"experiments/{name}.yaml",
        (
            ("package/pyproject.toml.jinja", "pyproject.toml"),
            ("package/README.md.jinja", "README.md"),
            ("package/gitignore.jinja", ".gitignore"),
            ("package/ci.yml.jinja", ".github/workflows/ci.yml"),
        ),
    )


def distribution_of(name: str) -> str:
    return f"nanovlm-{name.replace('_', '-')}"


def package_of(name: str) -> str:
    return f"nanovlm_{name}"


def is_clone(folder: Path) -> bool:
    """Whether it is the root of a clone of nanovlm."""
    pyproject = folder / "pyproject.toml"
    if not pyproject.is_file() or not all((folder / each).is_dir() for each in FOLDERS):
        return False
    try:
        project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
    except ValueError:  # no TOML
        return False
    return project.get("name") == "nanovlm"
