"""Where plugins come from, in which order, and what went wrong with one.

1. every module in the package ``nanovlm_plugins`` (the folder ``plugins/`` of a checkout),
2. every installed distribution with an entry point in the group ``nanovlm``,
3. the files given with ``--plugin`` on the command line.

The defaults take the same door as a stranger's. A plugin that fails stops nobody else: its error is kept, shown by
``nanovlm list``, and named when an experiment asks for something unknown.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from nanovlm import hookspecs
from nanovlm.components import Plugin
from nanovlm.errors import PluginError
from nanovlm.registry import Registry

DEFAULTS = "nanovlm_plugins"


@dataclass
class Registries:
    """The five registries, and the plugins that filled them."""

    vision_encoders: Registry = field(default_factory=partial(Registry, "vision_encoder"))
    projectors: Registry = field(default_factory=partial(Registry, "projector"))
    language_decoders: Registry = field(default_factory=partial(Registry, "language_decoder"))
    datasets: Registry = field(default_factory=partial(Registry, "dataset"))
    trackers: Registry = field(default_factory=partial(Registry, "tracker"))
    plugins: list[Plugin] = field(default_factory=list)
    files: tuple[str, ...] = ()
    """The files given by path: worker processes load them again."""

    def __iter__(self) -> Iterator[Registry]:
        return (value for item in fields(self) if isinstance(value := getattr(self, item.name), Registry))

    def add(self, plugin: Plugin, load: Callable[[], ModuleType]) -> None:
        """Load one plugin and take in all of its components, or none and the reason."""
        try:
            found = list(_components(load()))
            for hook, name, cls in found:
                getattr(self, hook).register(name, cls, plugin)
        except Exception as error:  # whatever a stranger's module raises; kept and shown, never swallowed
            plugin = replace(plugin, error=_last_line(error))
            for registry in self:
                registry.entries = [entry for entry in registry.entries if entry.plugin != plugin]
                registry.failed.append(plugin)
        self.plugins.append(plugin)


def load_plugins(files: Sequence[str] = ()) -> Registries:
    """All components that can be named in an experiment.

    Raises PluginError if one of ``files`` does not load: the user asked for it in so many words.
    """
    registries = Registries(files=tuple(str(Path(file).resolve()) for file in files))
    package = importlib.import_module(DEFAULTS)
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
        name = f"{DEFAULTS}.{module.name}"
        spec = importlib.util.find_spec(name)
        registries.add(
            _describe(name, "nanovlm", spec.origin if spec else None), partial(importlib.import_module, name)
        )
    for entry in importlib.metadata.entry_points(group="nanovlm"):
        registries.add(_describe_entry_point(entry), entry.load)
    for file in registries.files:
        path = Path(file)
        if not path.is_file():
            raise PluginError(f"--plugin {file}: there is no such file")
        registries.add(_describe(path.stem, path.stem, file), partial(_load_file, path))
        if error := registries.plugins[-1].error:
            raise PluginError(f"--plugin {file} does not load: {error}")
    return registries


def _components(module: ModuleType) -> list[tuple[str, str, type]]:
    """What one plugin registers, as (registry, name, class); a misspelt hook is an error."""
    manager = pluggy.PluginManager("nanovlm")
    manager.add_hookspecs(hookspecs)
    manager.register(module)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"{error}; the hooks are {', '.join(_hooks(manager))}") from None
    found: list[tuple[str, str, type]] = []
    for hook in _hooks(manager):
        kind = hook.removeprefix("register_")
        getattr(manager.hook, hook)(register=lambda name, cls, kind=kind: found.append((kind, name, cls)))
    if not found:
        raise PluginError(f"registers nothing; a plugin implements one of {', '.join(_hooks(manager))}")
    return found


def _hooks(manager: pluggy.PluginManager) -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("register_") and hasattr(manager.hook, name)]


def _describe(module: str, distribution: str, origin: str | None) -> Plugin:
    path = Path(origin or "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return Plugin(module, distribution, _version(distribution), str(path), digest)


def _describe_entry_point(entry: Any) -> Plugin:
    distribution = entry.dist.name if entry.dist else entry.module
    try:
        spec = importlib.util.find_spec(entry.module)
    except ImportError:  # its parent package does not import; loading it will say why
        spec = None
    return _describe(entry.module, distribution, spec.origin if spec else None)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _load_file(path: Path) -> ModuleType:
    name = f"nanovlm_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that its classes pickle
    spec.loader.exec_module(module)
    return module


def _last_line(error: BaseException) -> str:
    return (
        f"{type(error).__name__}: {error}".strip().splitlines()[0] if not isinstance(error, PluginError) else str(error)
    )
