"""What a model folder and a run wrote down of the plugins that they were made with, and what of it is here.

A component that is not installed is refused by its name and the package that had it. One of that name from another
package is told of, for it may compute something else. Another version of the same package is not: `nanovlm compare
--diff` shows versions and hashes, and weights that do not fit are refused when they are loaded. Only where one run goes
on is it told that a plugin's file has changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanovlm.errors import ConfigError, PluginError, join
from nanovlm.experiment import Named
from nanovlm.model_folder import kept_plugins
from nanovlm.places import place_of
from nanovlm.plugins import DEFAULTS, Registries
from nanovlm.registry import Plugin, Registry
from nanovlm.weights import read_json


@dataclass(frozen=True)
class Record:
    """The plugins by the place that they were used for: ``projector``, ``data.train.0``.

    made: how what was recorded came about, as a sentence goes on behind it: ``The model in runs/x/model was saved``
    copies: the folder where a run keeps the plugins that were given by path
    """

    made: str
    plugins: Mapping[str, Any]
    copies: Path

    def check(self, chosen: Mapping[str, Named], registries: Registries) -> list[str]:
        """What is to be said of components that are here from another package than recorded.

        chosen: by place. Raises PluginError for all those together that are not here at all. The registry has the word
        where nothing was recorded, where several plugins claim a name, and where the very plugin is here without it.
        """
        missing, remarks = [], []
        for where, choice in chosen.items():
            registry = registries.at(where)
            if not self.knows(where):
                continue
            if not (found := _claimants(registry, choice.name)):
                if not self.is_here(registry, where):
                    missing.append(self.missing(registry, where, choice.name))
            elif len(found) == 1 and (remark := self.remark(where, choice.name, found[0])):
                remarks.append(remark)
        if missing:
            raise PluginError(join(missing))
        return remarks

    def changed(self, chosen: Mapping[str, Named], registries: Registries) -> list[str]:
        """A sentence for each plugin of the same package whose file is not the one that was recorded."""
        places: dict[str, list[str]] = {}
        for where, choice in chosen.items():
            found = _claimants(registries.at(where), choice.name) if self.knows(where) else []
            if len(found) == 1 and _is_changed(self.plugins[where], found[0]):
                places.setdefault(found[0].path, []).append(f"{where} {choice.name!r}")
        return [
            f"{', '.join(used)}: its plugin {path} has changed since the run began" for path, used in places.items()
        ]

    def knows(self, where: str) -> bool:
        """Whether it was recorded which plugin was used there."""
        plugin = self.plugins.get(where)
        return isinstance(plugin, dict) and bool(plugin.get("module"))

    def is_here(self, registry: Registry, where: str) -> bool:
        """Whether the plugin that was used there is installed in the same version; a name that it lacks is misspelt."""
        keys = ("module", "distribution", "version")
        used = [self.plugins[where].get(key) for key in keys]
        return any([getattr(entry.plugin, key) for key in keys] == used for entry in registry)

    def missing(self, registry: Registry, where: str, name: str) -> str:
        """That a component is not here, which package had it, and how to have it again."""
        place = "" if where == registry.kind else f"{where}: "
        return (
            f"{place}{registry.kind} {name!r} is not installed here. {self.made} with it from "
            f"{self._origin(registry, self.plugins[where])}{registry.failures()}"
        )

    def remark(self, where: str, name: str, here: Plugin) -> str:
        """That a component is here from another package than it was recorded from; empty where it is not."""
        plugin = self.plugins[where] if self.knows(where) else {}
        if plugin.get("distribution", here.distribution) == here.distribution:
            return ""
        package = f"{plugin['distribution']} {plugin.get('version', '')}".rstrip()
        return f"{where} {name!r} comes from {here.origin} here. {self.made} with that of {package}: is it the same?"

    def _origin(self, registry: Registry, plugin: Mapping[str, Any]) -> str:
        module, distribution, version = (str(plugin.get(key, "")) for key in ("module", "distribution", "version"))
        file = f"{module.rpartition('.')[2]}.py"
        if not version:
            copy = self.copies / file
            return f"the file {file}: give it by --plugin{f' {copy}' if copy.is_file() else ''}"
        package = f"{distribution} {version} (module {module})"
        if module.startswith(f"{DEFAULTS}."):
            return f"{package}: install that version, or give its file {file} by --plugin"
        if others := {entry.plugin.version for entry in registry if entry.plugin.distribution == distribution}:
            return f"{package}, and {others.pop()}, which is here, has none: pip install {distribution}=={version}"
        return f"{package}: pip install {distribution}"


def of_model(folder: Path, source: str) -> Record:
    """folder: a model's own one. source: what the user calls it."""
    return Record(f"The model in {source} was saved", kept_plugins(folder), folder.parent)


def of_run(folder: Path, provenance: Mapping[str, Any]) -> Record:
    """folder: the run's. provenance: the content of its ``provenance.json``; what it was resumed with counts last."""
    found = [plugin for plugin in plugins_in(provenance) if plugin.get("module")]
    plugins = {where: plugin for plugin in found for where in plugin.get("used_for", ())}
    return Record(f"The run in {folder} was made", plugins, folder)


def check_own_files(chosen: Mapping[str, Named], registries: Registries) -> list[str]:
    """``Record.check`` of what was chosen by the ``experiment.yaml`` of a run, with what the run recorded beside it."""
    by_folder: dict[Path, dict[str, Named]] = {}
    for where, choice in chosen.items():
        place = place_of(choice.model_extra, "name")
        file = Path(place.where) if place and place.line else Path()
        if file.name == "experiment.yaml" and (file.parent / "provenance.json").is_file():
            by_folder.setdefault(file.parent, {})[where] = choice
    records = {folder: of_run(folder, read_json(folder / "provenance.json")) for folder in by_folder}
    return [remark for folder, choices in by_folder.items() for remark in records[folder].check(choices, registries)]


def stages(provenance: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a run recorded when it began, and each time that it was resumed; what is damaged is left out."""
    return [provenance, *resumptions(provenance)]


def resumptions(provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What it recorded each time that it was resumed: the ``step``, and versions, code, plugins and hardware."""
    return _mappings(provenance.get("resumed"))


def plugins_in(provenance: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The plugins of all ``stages``."""
    return (plugin for made in stages(provenance) for plugin in _mappings(made.get("plugins")))


def _mappings(found: Any) -> list[dict[str, Any]]:
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _is_changed(recorded: Mapping[str, Any], here: Plugin) -> bool:
    same_package = recorded.get("distribution", here.distribution) == here.distribution
    before = recorded.get("sha256")
    return bool(same_package and before and here.sha256 and before != here.sha256)


def _claimants(registry: Registry, name: str) -> list[Plugin]:
    try:
        return [registry.find(name).plugin]
    except ConfigError:
        return []
    except PluginError:  # several: which one is meant cannot be known
        return [entry.plugin for entry in registry if entry.name == name.rpartition(":")[2]]
