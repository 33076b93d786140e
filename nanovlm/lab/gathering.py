"""From folders to variants: runs whose experiments are equal but for the seed are one variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanovlm.blueprint import collected
from nanovlm.errors import ConfigError, unknown
from nanovlm.evaluation.evaluator import numbered
from nanovlm.lab.comparison import Unfinished
from nanovlm.lab.results import SWEEP, Result
from nanovlm.lab.settings import same_settings, variant_names
from nanovlm.lab.shared import Groups
from nanovlm.lab.sweep.sweep import Sweep, states


@dataclass(frozen=True)
class Chosen:
    """What is to be compared: the finished runs by variant; and those that have not finished."""

    groups: dict[str, list[Result]]
    baseline: str
    name: str
    unfinished: tuple[Unfinished, ...] = ()


@dataclass(frozen=True)
class Source:
    """What a folder gave. Of a sweep: its name, its baseline, and the variants' names, one for each run."""

    runs: list[Result]
    name: str
    variants: list[str]
    baseline: str = ""
    unfinished: tuple[Unfinished, ...] = ()


def gather(folders: Sequence[str | Path], baseline: str = "") -> Chosen:
    """Open runs, and of sweeps' folders all finished runs, and sort them into variants.

    baseline: a variant's name or a run's folder; by default a sweep's own, or the first run's variant. Raises
    ConfigError with all that is wrong with the folders at once.
    """
    sources = open_all(folders)
    groups: list[list[Result]] = []
    given: list[str] = []  # names by sweeps
    for source in sources:
        for run, name in zip(source.runs, source.variants, strict=True):
            place = next(
                (i for i, group in enumerate(groups) if same_settings(run.experiment, group[0].experiment)), None
            )
            if place is None:
                groups.append([run])
                given.append(name)
            else:
                groups[place].append(run)
                given[place] = given[place] or name
    made = variant_names([group[0].experiment for group in groups])
    called = numbered([name or other for name, other in zip(given, made, strict=True)])
    named = dict(zip(called, groups, strict=True))
    titles = list(dict.fromkeys(source.name for source in sources))
    return Chosen(
        groups=named,
        baseline=find_baseline(baseline or sources[0].baseline, named),
        name=titles[0] if len(titles) == 1 else "comparison",
        unfinished=tuple(run for source in sources for run in source.unfinished),
    )


def find_baseline(asked: str, groups: Groups) -> str:
    """The variant that is called so, or that has the run in a folder; by default the first."""
    for variant, runs in groups.items():
        if asked in ("", variant) or Path(asked).resolve() in (run.folder.resolve() for run in runs):
            return variant
    raise ConfigError(
        f"the baseline has no finished run here; choose one by --baseline: {unknown('variant', asked, groups)}"
    )


def open_all(folders: Sequence[str | Path]) -> list[Source]:
    """Raises ConfigError with all that is wrong with the folders, and for one that is named twice."""
    if not folders:
        raise ConfigError("RUN is missing: name two run folders or more, or a sweep's folder")
    sources: list[Source] = []
    seen: set[Path] = set()
    with collected() as problems:
        for folder in folders:
            with problems:
                source = open_source(Path(folder))
                for place in (run.folder for run in source.runs):
                    if place.resolve() in seen:
                        raise ConfigError(f"{place}: this run is named twice; name it once")
                    seen.add(place.resolve())
                sources.append(source)
    return sources


def open_source(folder: Path) -> Source:
    if not (folder / SWEEP).is_file():
        run = Result.open(folder)
        return Source([run], str(run.experiment["name"]), [""])
    sweep = Sweep.open(folder)
    found = states(sweep)
    runs, variants = [], []
    with collected() as problems:
        for state in found:
            if state.state == "done":
                with problems:
                    runs.append(Result.open(state.folder))
                    variants.append(state.variant)
    if not runs:
        raise ConfigError(
            f"{folder}: no run of this sweep has finished; go on with it by the `nanovlm ablate` that began it"
        )
    unfinished = tuple(
        Unfinished(state.variant, state.seed, state.state, state.reason, str(state.log))
        for state in found
        if state.state != "done"
    )
    return Source(runs, sweep.name, variants, sweep.baseline, unfinished)
