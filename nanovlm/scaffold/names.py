"""Names for a new component that work everywhere: as a module, a class, a word in YAML, and a registered name."""

from __future__ import annotations

import builtins
import importlib.util
import keyword
import re
import unicodedata
from pathlib import Path

from nanovlm.errors import ConfigError
from nanovlm.registry import Plugin, Registry
from nanovlm.scaffold.layout import Layout, is_clone

SNAKE_CASE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
LONGEST = 30  # characters: lines of code that hold it stay within 120


def check_name(name: str) -> None:
    """A ConfigError where no component can be called so, with a name that can."""
    if not SNAKE_CASE.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a component's name: it takes small letters, digits and single underscores, and begins "
            f"with a letter, for example {snake_case(name)!r}"
        )
    if len(name) > LONGEST:
        raise ConfigError(f"{name!r} has {len(name)} characters: choose a name with at most {LONGEST}")
    if keyword.iskeyword(name) or keyword.iskeyword(camel_case(name)) or name == "null":
        raise ConfigError(f"{name!r} means something else in Python or YAML: choose another name")


def check_free(name: str, registry: Registry, layout: Layout) -> None:
    """A ConfigError where there is such a component already; of a single file, with how it can move."""
    for entry in registry:
        if entry.name == name:
            place, move = layout.folder / layout.component, ""
            if layout.form != "clone" and _is_single_file(entry.plugin):
                move = f"; if it is yours: move {entry.plugin.path} away first, then put its text into {place}"
            raise ConfigError(
                f"there is a {registry.kind} {name!r} already, from {entry.plugin.distribution} ({entry.plugin.path}): "
                f"choose another name, that of what yours does otherwise{move}"
            )


def _is_single_file(plugin: Plugin) -> bool:
    """Of no distribution, or in a clone's ``plugins/``, where somebody's own file lies beside the defaults."""
    folder = Path(plugin.path).parent
    return not plugin.version or (folder.name == "plugins" and is_clone(folder.parent))


def check_module(module: str, name: str) -> None:
    """A ConfigError where another module that is installed here has this name: one of the two would hide the other."""
    if importlib.util.find_spec(module):
        raise ConfigError(
            f"{name!r} would be a module {module!r}, and there is one already that Python imports by this name: "
            "choose another name"
        )


def snake_case(text: str) -> str:
    """The nearest name to what was asked for."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()  # ü is u
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", plain)  # GatedMLP, MLPGate
    words = re.findall(r"[a-z0-9]+", parted.lower())
    return "_".join(words).lstrip("0123456789_") or "gated_mlp"


def camel_case(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def class_name(name: str, kind: str, source: str) -> str:
    """A name for the component's class that means nothing else in the ``source`` where it will stand."""
    chosen = camel_case(name)
    taken = {*re.findall(r"\w+", source), *dir(builtins)}
    return chosen if chosen not in taken else chosen + camel_case(kind)
