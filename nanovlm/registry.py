"""One registry for each kind of component: from the name in an experiment file to a class."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nanovlm.components import ComponentConfig, parse
from nanovlm.errors import ConfigError, PluginError, unknown

RESERVED = {"dataset": ("name", "weight", "every", "limit")}  # keys beside a component's options that the core reads


@dataclass(frozen=True)
class Plugin:
    """Where a component came from."""

    module: str
    distribution: str
    version: str
    path: str
    sha256: str
    error: str = field(default="", compare=False)
    """Why it could not be loaded: the last line of its traceback."""
    contract: int | None = None
    """The version of the contract that it was written for (hookspecs.CONTRACT), where it says so."""

    def provenance(self) -> dict[str, Any]:
        """What a run and a model folder keep of it."""
        return {key: getattr(self, key) for key in ("module", "distribution", "version", "sha256", "contract")}

    @property
    def origin(self) -> str:
        """For people: the distribution and its version; of a file that belongs to none, its path."""
        return f"{self.distribution} {self.version}" if self.version else self.path


class Entry(NamedTuple):
    """A registered component."""

    name: str
    cls: type
    plugin: Plugin

    @property
    def doc(self) -> str:
        """What it is: the first line of the class's own docstring, or of its module's."""
        own = self.cls.__dict__.get("__doc__") or getattr(sys.modules.get(self.cls.__module__), "__doc__", None) or ""
        return next(iter(own.strip().splitlines()), "")


class Registry:
    """The components of one kind, by the name an experiment file gives them.

    Two plugins may claim one name; using it is then an error that names both, and ``origin:name`` chooses.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind  # as an experiment file spells it: "projector"
        self.entries: list[Entry] = []
        self.failed: list[Plugin] = []

    def register(self, name: str, cls: type, plugin: Plugin) -> None:
        """Take ``cls`` in under ``name``; a PluginError where an experiment could not use it."""
        what = f"{self.kind} {name!r}"
        if not isinstance(name, str) or not name or ":" in name:
            raise PluginError(f"{what}: a name is a word without a colon")
        config = getattr(cls, "Config", None)
        if not (isinstance(config, type) and issubclass(config, ComponentConfig)):
            shown = getattr(cls, "__qualname__", repr(cls))
            raise PluginError(f"{what}: {shown} needs a nested `class Config(ComponentConfig)`")
        if taken := [key for key in RESERVED.get(self.kind, ("name",)) if key in config.model_fields]:
            raise PluginError(f"{what}: an option cannot be called {taken[0]!r}: an experiment's own key would hide it")
        if any(entry.name == name and entry.plugin == plugin for entry in self.entries):
            raise PluginError(f"{what} is registered twice; give each class a name of its own")
        self.entries.append(Entry(name, cls, plugin))

    def __iter__(self) -> Iterator[Entry]:
        return iter(sorted(self.entries, key=lambda entry: (entry.name, entry.plugin.module)))

    def find(self, name: str, where: str = "") -> Entry:
        """The one component called ``name``; a ConfigError suggests the nearest, a PluginError lists the claimants."""
        where = where or self.kind
        origin, _, short = name.rpartition(":")
        found = [entry for entry in self.entries if entry.name == short and origin in ("", *_origins(entry.plugin))]
        if len(found) > 1:
            choices = " or ".join(f"{self.with_origin(entry)!r} ({entry.plugin.path})" for entry in found)
            raise PluginError(f"{where}: {self.kind} {name!r} is claimed by {len(found)} plugins: write {choices}")
        if not found:
            known = (entry.name for entry in self.entries)
            if origin and (same := [entry for entry in self.entries if entry.name == short]):
                known = (self.with_origin(entry) for entry in same)
            raise ConfigError(f"{where}: {unknown(self.kind, name, known)}{self.failures()}")
        return found[0]

    def configure(
        self, name: str, options: dict[str, Any], where: str = "", also: Iterable[str] = ()
    ) -> ComponentConfig:
        """The validated options of ``name``; ``also`` are the keys that may stand beside them."""
        schema: type[ComponentConfig] = self.find(name, where).cls.Config  # type: ignore[attr-defined]
        return parse(schema, options, where or self.kind, also)

    def build(self, name: str, options: dict[str, Any], **context: Any) -> Any:
        """Look ``name`` up, validate its ``options``, and construct it in ``context``."""
        return self.find(name).cls(self.configure(name, options), **context)

    def is_claimed_twice(self, name: str) -> bool:
        """Whether it must be spelled with its origin."""
        return sum(entry.name == name for entry in self.entries) > 1

    def with_origin(self, entry: Entry) -> str:
        """``origin:name``, with the shortest origin that no other component of this name has."""
        rivals = [other for other in self.entries if other.name == entry.name and other is not entry]
        taken = {origin for rival in rivals for origin in _origins(rival.plugin)}
        origin = next(origin for origin in (*_origins(entry.plugin), "") if origin not in taken)
        return f"{origin}:{entry.name}"

    def failures(self) -> str:
        """A plugin that did not load may be the one that was meant."""
        return "".join(f"\n  Not loaded: {plugin.path}: {plugin.error}" for plugin in self.failed)


def _origins(plugin: Plugin) -> tuple[str, ...]:
    """What may stand before the colon, shortest first."""
    return plugin.distribution, plugin.module.rpartition(".")[2], plugin.module, plugin.path
