"""Experiments by name: those that come with nanovlm are found from any folder, with or without a checkout."""

from __future__ import annotations

import difflib
import importlib.util
import os
from pathlib import Path

from nanovlm.errors import ConfigError
from nanovlm.yaml_reader import missing

PACKAGE = "nanovlm_experiments"  # the folder experiments/ of a checkout


def shipped_folders() -> list[Path]:
    """One; of an editable install also a name that stands for no folder, which is left out."""
    spec = importlib.util.find_spec(PACKAGE)
    places = map(Path, (spec.submodule_search_locations if spec else None) or ())
    return [place for place in places if place.is_dir()]


def shipped_experiments() -> dict[str, Path]:
    """The files that come with nanovlm, by name: the file's stem, of two alike the one in a folder with that folder."""
    found: dict[str, Path] = {}
    for name, file in sorted(_by_path().items(), key=lambda item: (item[0].count("/"), item[0])):
        found[file.stem if file.stem not in found else name] = file
    return found


def _by_path() -> dict[str, Path]:
    """By ``folder/stem``, as they lie."""
    return {
        file.relative_to(folder).with_suffix("").as_posix(): file
        for folder in reversed(shipped_folders())
        for file in folder.rglob("*.yaml")
    }


def find_experiment(name: str | Path, folder: Path = Path()) -> Path:
    """The file that is meant: a path relative to ``folder`` if there is one, else an experiment that nanovlm ships.

    Raises ConfigError with what was probably meant, and where it was looked for.
    """
    file = _straight(folder / name)
    if file.is_file():
        return file
    if found := (_by_path() | shipped_experiments()).get(Path(name).as_posix()):
        return found
    if file.exists():  # a folder: reading it says what is wrong
        return file
    raise ConfigError(_not_found(name, file))


def find_ablation(name: str | Path) -> Path:
    """The same of those that take several runs: of two experiments of one name it is the one in ``ablations/``."""
    asking = _by_path().get(f"ablations/{Path(name).as_posix()}")
    return asking if asking and not Path(name).is_file() else find_experiment(name)


def _straight(file: Path) -> Path:
    """Without ``ablations/../``, unless a link makes that another file."""
    straight = Path(os.path.normpath(file))
    return straight if straight.exists() and file.exists() and straight.samefile(file) else file


def _not_found(name: str | Path, file: Path) -> str:
    """With what was probably meant, spelled as it is to be written: relative to what the name is relative to."""
    shipped = shipped_experiments()
    if file.suffix in (".yaml", ".yml"):
        hint = f"; the one that comes with nanovlm is called by its name, {file.stem}" if file.stem in shipped else ""
        return missing(file) + hint
    near = [*file.parent.glob("experiments/**/*.yaml"), *file.parent.glob("*.yaml")]  # of two alike the nearest
    beside = {other.stem: str(Path(name).parent / other.relative_to(file.parent)) for other in near}
    meant = beside | {known: known for known in shipped}
    close = difflib.get_close_matches(file.name, meant, n=1)
    hint = f" Did you mean {meant[close[0]]!r}?" if close else ""
    folders = ", ".join(map(str, [file.resolve().parent, *shipped_folders()]))
    return (
        f"unknown experiment {str(name)!r}.{hint}\n"
        f"  Known here: {', '.join(sorted(shipped)) or 'nothing'}, or the path of a YAML file\n"
        f"  Looked in {folders}"
    )
