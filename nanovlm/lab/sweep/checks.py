"""What a sweep's folder holds already: whether it is what is asked for, and what is left to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanovlm.blueprint import Recipe, choices_of, collected
from nanovlm.errors import ConfigError, NanoVLMError, join
from nanovlm.experiment import Experiment, Named, load_experiment
from nanovlm.lab.ablation import Ablation
from nanovlm.lab.diff import edition
from nanovlm.lab.results import read_object
from nanovlm.lab.sweep.sweep import Sweep, SweepRun
from nanovlm.plugins import OWN, Registries
from nanovlm.recorded_plugins import plugins_in, stages
from nanovlm.registry import Plugin
from nanovlm.training.resume import HARDWARE, LOGGING, differences
from nanovlm.training.run import source_hash


def check_folder(sweep: Sweep) -> None:
    """ConfigError where the folder holds another ablation, or something else."""
    if before := sweep.before:
        if before.name != sweep.name:
            raise ConfigError(f"{sweep.folder}: it holds the ablation {before.name!r}; use another --sweep-dir")
    elif sweep.folder.is_dir() and any(file.name != ".lock" for file in sweep.folder.iterdir()):
        raise ConfigError(f"{sweep.folder}: it is not empty, and holds no ablation; use another --sweep-dir")


def check_idle(sweep: Sweep) -> None:
    """ConfigError with every run that another process trains."""
    runs = dict.fromkeys([*sweep.runs, *(sweep.before.runs if sweep.before else ())])
    if training := [run for run in runs if run.is_training]:
        raise ConfigError(
            join(f"{run.folder}: another process trains in this folder" for run in training)
            + "\nA sweep that was killed may have left it; wait for it, or stop it"
        )


def check_runs(sweep: Sweep, ablation: Ablation, registries: Registries) -> None:
    """ConfigError with every run that is another one than is asked for now."""
    changed: dict[str, list[str]] = {}
    with collected() as problems:
        for run in (run for run in sweep.runs if run.is_begun):
            with problems:
                for change in changes(run, asked_for(ablation, run), registries):
                    changed.setdefault(change, []).append(run.label)
    if changed:
        lines = "".join(f"\n  {', '.join(runs)}: {change}" for change, runs in changed.items())
        verdict = f"for the verdict on those that are there, nanovlm compare {sweep.folder}"
        raise ConfigError(
            f"{sweep.folder}: it holds other runs than those asked for:{lines}\n"
            "To ask anew, use another --sweep-dir, or move these runs' folders away"
            + (f"; {verdict}" if any(run.is_done for run in sweep.runs) else "")
        )


def runs_left(ablation: Ablation, folder: Path, registries: Registries) -> list[SweepRun]:
    """The runs that are still to be trained: all that are not done already as they are asked for now."""
    sweep = Sweep.of(ablation, folder)
    before = sweep.before
    if not before or before.name != sweep.name:
        return sweep.runs
    old = {new: old for old, new in sweep.renamed(before).items()}
    return [
        run
        for run in sweep.runs
        if not _is_answered(
            replace(run, folder=folder / old.get(run.variant, run.variant) / run.folder.name),
            asked_for(ablation, run),
            registries,
        )
    ]


def _is_answered(run: SweepRun, asked: Experiment, registries: Registries) -> bool:
    try:
        return run.is_done and not changes(run, asked, registries)
    except NanoVLMError:  # said when the sweep is to go on with it
        return False


def asked_for(ablation: Ablation, run: SweepRun) -> Experiment:
    return next(variant for variant in ablation.variants if variant.name == run.variant).experiment(run.seed)


def changes(run: SweepRun, asked: Experiment, registries: Registries) -> list[str]:
    """What differs between a run that is there and the one asked for, but for logging, hardware and nanovlm's code."""
    began_with = load_experiment(run.run.experiment)
    edited = changed_plugins(began_with, provenance_of(run), registries)
    try:
        recorded = Recipe.of(began_with, registries, resolve=False).dump()
    except NanoVLMError:
        if edited:  # a plugin that has other options now
            return edited
        raise
    return [*differences(recorded, Recipe.of(asked, registries).dump(), LOGGING + HARDWARE), *edited]


def changed_plugins(experiment: Experiment, provenance: dict[str, Any], registries: Registries) -> list[str]:
    """Each plugin that is another one now than the run recorded, and what it is used for.

    A tracker's does not count, for it changes no result.
    """
    told: dict[str, list[str]] = {}  # of each change, the components
    for where, choice in choices_of(experiment).items():
        here = _installed(where, choice, registries)
        if not here or where.startswith("trackers."):
            continue
        for plugin in _recorded(where, provenance):
            if _state(plugin) != _state(here.provenance()):
                change = f"({here.path}): {edition(plugin)} in the run, {edition(here.provenance())} now"
                component = f"{where} {choice.name}"
                if component not in told.setdefault(change, []):
                    told[change].append(component)
    return [f"{', '.join(components)}: its plugin has changed {change}" for change, components in told.items()]


def _installed(where: str, choice: Named, registries: Registries) -> Plugin | None:
    try:
        return registries.at(where).find(choice.name, where).plugin
    except NanoVLMError:  # that it is missing, or claimed twice, is said where the experiment is read
        return None


def _recorded(where: str, provenance: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The plugins that a run had at a place: when it began, and each time that it was resumed."""
    for plugin in plugins_in(provenance):
        if plugin.get("sha256") and where in (plugin.get("used_for") or ()):
            yield plugin


def _state(plugin: dict[str, Any]) -> tuple[Any, Any]:
    """What changes with a plugin's code. The hash is of one file, and a package has others, of which its version tells.

    nanovlm's own version tells of the core, which may change (see ``other_code``).
    """
    return plugin["sha256"], plugin.get("version") if plugin.get("distribution") != OWN else ""


def other_code(sweep: Sweep) -> str:
    """That what is left is trained by other code of nanovlm than runs that are there; empty where it is not."""
    if all(run.is_done for run in sweep.runs):
        return ""
    now = source_hash()
    others = [run for run in sweep.runs if run.is_begun and _sources(provenance_of(run)) - {now}]
    if not others:
        return ""
    return (
        f"{len(others)} of {len(sweep.runs)} runs were trained by other code of nanovlm than is here now, so the "
        'verdict will be "not paired"; for one that is, use another --sweep-dir'
    )


def _sources(provenance: dict[str, Any]) -> set[str]:
    return {each["source"] for each in stages(provenance) if isinstance(each.get("source"), str)}


def provenance_of(run: SweepRun) -> dict[str, Any]:
    """Empty where there is none; a ConfigError where it is damaged."""
    return read_object(run.run.provenance) if run.run.provenance.is_file() else {}
