"""Where plugins come from, in which order, and what went wrong with one.

1. every module in the package ``nanovlm_plugins`` (the folder ``plugins/`` of a checkout),
2. every installed distribution with an entry point in the group ``nanovlm``,
3. the files given with ``--plugin`` on the command line.

The defaults take the same door as a stranger's. A plugin that fails, or was written for another contract (see
hookspecs.py), stops nobody else: its error is kept, shown by ``nanovlm list``, and named when an experiment asks for
something unknown.
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
from nanovlm.hookspecs import CONTRACT
from nanovlm.registry import Plugin, Registry

DEFAULTS, OWN = "nanovlm_plugins", "nanovlm"  # the default plugins' package, and the distribution that has it
CONTRACT_NAME = "nanovlm_contract"  # in a plugin's module


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

    def at(self, place: str) -> Registry:
        """What can stand at a place in an experiment: ``projector``, ``data.train.0``, ``benchmarks.0``."""
        listed = {"data": self.datasets, "benchmarks": self.datasets, "benchmark": self.datasets}
        first = place.partition(".")[0]
        return listed.get(first) or next(registry for registry in self if first in (registry.kind, f"{registry.kind}s"))

    def defaults(self) -> "Registries":
        """What comes with nanovlm itself, and nothing else."""
        own = Registries(plugins=[plugin for plugin in self.plugins if plugin.distribution == OWN])
        for registry, kept in zip(self, own, strict=True):
            kept.entries = [entry for entry in registry.entries if entry.plugin.distribution == OWN]
        return own

    def add(self, plugin: Plugin, load: Callable[[], object]) -> None:
        """Load one plugin and take in all of its components, or none and the reason."""
        before = [(registry, list(registry.entries)) for registry in self]
        try:
            module = load()
            plugin = replace(plugin, contract=_contract(module, plugin))
            for hook, name, cls in _components(module):
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
    record = importlib.metadata.distribution(OWN).read_text("RECORD") or ""
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
        name = f"{DEFAULTS}.{module.name}"
        spec = importlib.util.find_spec(name)
        path = Path(spec.origin if spec and spec.origin else name)
        plugin = _describe(name, OWN, str(path)) if _is_default(path, record) else _describe_file(name, path)
        registries.add(plugin, partial(importlib.import_module, name))
    found = importlib.metadata.entry_points(group="nanovlm")
    for entry in {(entry.dist, entry.value): entry for entry in found}.values():  # one module may be named twice
        registries.add(_describe_entry_point(entry), entry.load)
    for file in registries.files:
        if any(plugin.path == file and not plugin.error for plugin in registries.plugins):
            continue  # a default plugin, say: a second copy would claim the same names
        if not Path(file).is_file():
            raise PluginError(f"--plugin {file}: there is no such file")
        registries.add(_describe_file(Path(file).stem, Path(file)), partial(_load_file, Path(file)))
        if error := registries.plugins[-1].error:
            raise PluginError(f"--plugin {file} does not load: {error}")
    return registries


def _is_default(file: Path, record: str) -> bool:
    """Whether a module of ``nanovlm_plugins`` came with nanovlm, or was dropped in beside those that did.

    record: of the files that an installer took from a wheel. A checkout's has none of the folder's: there every file
    of it is nanovlm's.
    """
    folder = Path(importlib.import_module(DEFAULTS).__file__ or "").parent
    if folder not in file.parents:
        return False
    return f"{DEFAULTS}/" not in record or f"{DEFAULTS}/{file.relative_to(folder).as_posix()}," in record


def _contract(module: object, plugin: Plugin) -> int | None:
    """What the plugin says that it was written for; a PluginError for another contract than this nanovlm's.

    module: or the object in it that an entry point names; then the module speaks for it.
    """
    spoken = module if hasattr(module, CONTRACT_NAME) else sys.modules.get(plugin.module)
    contract = getattr(spoken, CONTRACT_NAME, None)
    if contract is None:
        return None
    if not isinstance(contract, int) or isinstance(contract, bool):
        raise PluginError(f"{CONTRACT_NAME} = {contract!r} is no whole number; write {CONTRACT_NAME} = {CONTRACT}")
    if contract != CONTRACT:
        mine = f"this nanovlm ({_version(OWN)}) has {CONTRACT}"
        newer = "upgrade nanovlm, or " if contract > CONTRACT else ""
        other = f"install a version of {plugin.distribution}" if plugin.version else "change the file to one"
        raise PluginError(f"was written for contract {contract}, and {mine}: {newer}{other} for contract {CONTRACT}")
    return contract


def _components(module: object) -> list[tuple[str, str, type]]:
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
    return Plugin(module, distribution, _version(distribution), path, _digest(Path(path)))


def _describe_file(module: str, file: Path) -> Plugin:
    """A file that belongs to no distribution: it is called after itself, and has no version."""
    return Plugin(module, module.rpartition(".")[2], "", str(file), _digest(file))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


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
