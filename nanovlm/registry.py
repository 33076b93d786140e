"""One registry for each kind of component: from the name in an experiment file to a class."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from nanovlm.components import ComponentConfig, Plugin, parse
from nanovlm.errors import ConfigError, PluginError, unknown


class Entry(NamedTuple):
    """A registered component."""

    name: str
    cls: type
    plugin: Plugin


class Registry:
    """The components of one kind, by the name an experiment file gives them.

    Two plugins may claim one name; using it is then an error that names both, and ``origin:name`` chooses.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind  # as an experiment file spells it: "projector"
        self.entries: list[Entry] = []
        self.failed: list[Plugin] = []

    def register(self, name: str, cls: type, plugin: Plugin) -> None:
        config = getattr(cls, "Config", None)
        if not (isinstance(config, type) and issubclass(config, ComponentConfig)):
            raise PluginError(
                f"{self.kind} {name!r}: {cls.__qualname__} needs a nested `class Config(ComponentConfig)`"
            )
        self.entries.append(Entry(name, cls, plugin))

    def __iter__(self) -> Iterator[Entry]:
        return iter(sorted(self.entries, key=lambda entry: (entry.name, entry.plugin.module)))

    def find(self, name: str, where: str = "") -> Entry:
        """The one component called ``name``; a ConfigError suggests the nearest, a PluginError lists the claimants."""
        where = where or self.kind
        origin, _, short = name.rpartition(":")
        found = [entry for entry in self.entries if entry.name == short and origin in ("", *_origins(entry.plugin))]
        if len(found) > 1:
            choices = " or ".join(f"'{_choice(entry, found)}:{short}' ({entry.plugin.path})" for entry in found)
            raise PluginError(f"{where}: {self.kind} {name!r} is claimed by {len(found)} plugins: write {choices}")
        if not found:
            raise ConfigError(
                f"{where}: {unknown(self.kind, name, (entry.name for entry in self.entries))}{self._failures()}"
            )
        return found[0]

    def configure(self, name: str, options: dict[str, Any], where: str = "") -> ComponentConfig:
        """The validated options of ``name``."""
        config: ComponentConfig = parse(self.find(name, where).cls.Config, options, where or self.kind)  # type: ignore[attr-defined]
        return config

    def build(self, name: str, options: dict[str, Any], **context: Any) -> Any:
        """Look ``name`` up, validate its ``options``, and construct it in ``context``."""
        return self.find(name).cls(self.configure(name, options), **context)

    def _failures(self) -> str:
        """A plugin that did not load may be the one that was meant."""
        return "".join(f"\n  Not loaded: {plugin.path}: {plugin.error}" for plugin in self.failed)


def _origins(plugin: Plugin) -> tuple[str, str]:
    return plugin.distribution, plugin.module.rpartition(".")[2]


def _choice(entry: Entry, rivals: list[Entry]) -> str:
    """The shortest origin that only this entry has."""
    distribution, module = _origins(entry.plugin)
    alone = sum(rival.plugin.distribution == distribution for rival in rivals) == 1
    return distribution if alone else module
