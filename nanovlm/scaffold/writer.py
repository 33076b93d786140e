"""Fill in the templates, and write them where nothing is yet."""

from __future__ import annotations

import importlib
import os
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from nanovlm.errors import ConfigError, unknown
from nanovlm.files import write_whole
from nanovlm.plugins import DEFAULTS, Registries, load_plugins
from nanovlm.scaffold.layout import Form, Layout, choose_layout, distribution_of, package_of
from nanovlm.scaffold.names import check_free, check_module, check_name, class_name

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Written:
    """What was written, in which form, and what to do next."""

    form: Form
    files: list[Path]
    commands: list[str]


def scaffold(kind: str, name: str, folder: str | Path = ".", package: bool = False) -> Written:
    """Write a component of this kind with its test and an experiment, or with ``package`` a whole distribution.

    Raises ConfigError where it cannot be called so, or one of its files is there already; then nothing is written.
    """
    registries = load_plugins()
    by_kind = {registry.kind: registry for registry in registries}
    if kind not in by_kind:
        raise ConfigError(unknown("kind", kind, by_kind))
    check_name(name)
    layout = choose_layout(name, Path(folder), package)
    check_free(name, by_kind[kind], layout)
    files = layout.files(kind)
    _refuse_to_overwrite(layout, name, [path for _, path in files])
    _refuse_to_hide(layout, name)
    texts = _fill_in(files, _values(layout, kind, name, registries))
    try:
        for path, text in texts.items():
            write_whole(path, text)
    except OSError as error:
        raise ConfigError(f"{layout.folder}: no files can be written there ({error.strerror}); use --into") from None
    return Written(layout.form, list(texts), _next_commands(layout, name, _kind_option(kind, name, registries)))


def _refuse_to_overwrite(layout: Layout, name: str, files: list[Path]) -> None:
    there = [str(path) for path in files if os.path.lexists(path)]  # a link that leads nowhere, too
    if layout.form == "clone":  # pytest takes no two test modules of one name
        there += [str(path) for path in sorted((layout.folder / "tests").rglob(f"test_{name}.py")) if path not in files]
    if there:
        raise ConfigError(
            f"nothing is overwritten, and there already is {', '.join(there)}: choose another name than {name!r}, "
            "or remove what is not needed"
        )


def _refuse_to_hide(layout: Layout, name: str) -> None:
    if layout.form == "flat":
        check_module(name, name)
    elif layout.form == "package":
        check_module(package_of(name), name)


def _values(layout: Layout, kind: str, name: str, registries: Registries) -> dict[str, str]:
    """What the templates ask for."""
    source = (TEMPLATES / "component" / f"{kind}.py.jinja").read_text(encoding="utf-8")
    return {
        "form": layout.form,
        "kind": kind,
        "noun": kind.replace("_", " "),
        "kind_option": _kind_option(kind, name, registries),
        "name": name,
        "cls": class_name(name, kind, source),
        "package": package_of(name),
        "distribution": distribution_of(name),
        "extends": "quickstart.yaml" if layout.form == "clone" else "quickstart",
        "version": version("nanovlm"),
    }


def _kind_option(kind: str, name: str, registries: Registries) -> str:
    """What `nanovlm check NAME` needs where a component of another kind has the same name."""
    others = any(entry.name == name for registry in registries for entry in registry)
    return f" --kind {kind}" if others else ""


def _fill_in(files: list[tuple[str, Path]], values: dict[str, str]) -> dict[Path, str]:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return {path: templates.get_template(template).render(values) for template, path in files}


def _next_commands(layout: Layout, name: str, kind_option: str) -> list[str]:
    """Three commands that work as they stand here, after one that installs what is not installed yet."""
    component, test, experiment = (
        shlex.quote(str(layout.folder / path)) for path in (layout.component, layout.test, layout.experiment)
    )
    folder = shlex.quote(str(layout.folder))
    check, train = f"nanovlm check {name}{kind_option}", f"nanovlm train {experiment}"
    if layout.form == "flat":
        return [f"{check} --plugin {component}", f"{train} --plugin {component}", f"pytest {test}"]
    if layout.form == "package":
        return [f"pip install -e {folder}", check, train]
    everything = " ".join(shlex.quote(str(layout.folder / "tests" / f"test_{what}.py")) for what in EVERY)
    install = [] if _is_installed(layout.folder) else [f"pip install -e {folder}"]
    return [*install, check, train, f"pytest {test} {everything} -k {name}"]


EVERY = ("components", "experiments")  # tests of a clone that find a new file by themselves


def _is_installed(clone: Path) -> bool:
    """Whether the nanovlm that is running finds the plugins of this clone."""
    found = importlib.import_module(DEFAULTS).__path__
    return any(Path(path).resolve() == (clone / "plugins").resolve() for path in found)
