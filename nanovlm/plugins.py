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
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pluggy

from nanovlm import hookspecs
from nanovlm.errors import PluginError, unknown
from nanovlm.registry import Plugin, Registry

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
        before = [(registry, list(registry.entries)) for registry in self]
        try:
            for hook, name, cls in _components(load()):
                getattr(self, hook).register(name, cls, plugin)
        except (Exception, SystemExit) as error:  # whatever a stranger's module raises; kept and shown, never swallowed
            plugin = replace(plugin, error=_reason(error, plugin.path))
            for registry, entries in before:
                registry.entries = entries
                registry.failed.append(plugin)
        self.plugins.append(plugin)


def load_plugins(files: Sequence[str] = ()) -> Registries:
    """All components that can be named in an experiment.

    Raises PluginError if one of ``files`` does not load: the user asked for it in so many words.
    """
    registries = Registries(files=tuple(dict.fromkeys(str(Path(file).resolve()) for file in files)))
    package = importlib.import_module(DEFAULTS)
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
        name = f"{DEFAULTS}.{module.name}"
        spec = importlib.util.find_spec(name)
        registries.add(
            _describe(name, "nanovlm", spec.origin if spec else None), partial(importlib.import_module, name)
        )
    found = importlib.metadata.entry_points(group="nanovlm")
    for entry in {(entry.dist, entry.value): entry for entry in found}.values():  # one module may be named twice
        registries.add(_describe_entry_point(entry), entry.load)
    for file in registries.files:
        if any(plugin.path == file and not plugin.error for plugin in registries.plugins):
            continue  # a default plugin, say: a second copy would claim the same names
        if not Path(file).is_file():
            raise PluginError(f"--plugin {file}: there is no such file")
        registries.add(_describe(Path(file).stem, Path(file).stem, file), partial(_load_file, Path(file)))
        if error := registries.plugins[-1].error:
            raise PluginError(f"--plugin {file} does not load: {error}")
    return registries


def _components(module: ModuleType) -> list[tuple[str, str, type]]:
    """What one plugin registers, as (registry, name, class); a misspelt hook is an error."""
    manager = pluggy.PluginManager("nanovlm")
    manager.add_hookspecs(hookspecs)
    hooks = _hooks(manager)
    try:
        manager.register(module)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        if misspelt := [name for name in vars(manager.hook) if name not in hooks and not name.startswith("_")]:
            raise PluginError(unknown("hook", misspelt[0], hooks)) from None
        reason = str(error).splitlines()[-1]
        raise PluginError(f"{reason}; a hook takes one argument, `register`") from None
    found: list[tuple[str, str, type]] = []
    for hook in hooks:
        kind = hook.removeprefix("register_")
        getattr(manager.hook, hook)(register=lambda name, cls, kind=kind: found.append((kind, name, cls)))
    if not found:
        raise PluginError(f"registers nothing; a plugin implements, under @hookimpl, one of {', '.join(hooks)}")
    return found


def _hooks(manager: pluggy.PluginManager) -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("register_") and hasattr(manager.hook, name)]


def _describe(module: str, distribution: str, origin: str | None) -> Plugin:
    path = origin or f"{module} (of the distribution {distribution})"
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else ""
    return Plugin(module, distribution, _version(distribution), path, digest)


def _describe_entry_point(entry: importlib.metadata.EntryPoint) -> Plugin:
    module = entry.value.partition(":")[0].strip()
    distribution = entry.dist.name if entry.dist else module
    try:
        spec = importlib.util.find_spec(module)
    except (Exception, SystemExit):  # its parent package does not import; loading it will say why
        spec = None
    return _describe(module, distribution, spec.origin if spec else None)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


class _Uncached(SourceFileLoader):
    """Reads the source each time. Of two files of one size, written within a second, Python's cache takes the old."""

    def path_stats(self, path: object) -> NoReturn:
        raise OSError  # so there is neither a cache to trust nor one to write


def _load_file(path: Path) -> ModuleType:
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]  # two files may have one name
    name = f"nanovlm_plugin_{path.stem}_{digest}"
    if path.suffix != ".py":
        raise PluginError("a plugin is a Python file; its name ends in .py")
    spec = importlib.util.spec_from_file_location(name, path, loader=_Uncached(name, str(path)))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that its classes pickle
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _reason(error: BaseException, path: str) -> str:
    """The last line of the traceback, and the line of the plugin's own file that led there."""
    if isinstance(error, PluginError):
        return str(error)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{reason} (line {lines[-1]})" if lines else reason
