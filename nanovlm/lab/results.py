"""Finished runs, read from their folders."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanovlm.blueprint import located
from nanovlm.data.origins import Losses, read_losses
from nanovlm.errors import ConfigError, DataError
from nanovlm.evaluation.evaluator import Item, read_items
from nanovlm.experiment import parse_experiment
from nanovlm.training.run import Run
from nanovlm.yaml_reader import read_yaml

SWEEP = "ablation.yaml"  # what a sweep's folder holds
ADDED = ".json"  # behind the step: the summary of a benchmark that was asked after the run, beside its items
NEEDED = {"steps": int, "samples": int, "benchmarks": dict}  # of a summary, to make anything of it


@dataclass(frozen=True)
class Result:
    """A finished run as its folder holds it.

    experiment: resolved, every option written out (``experiment.yaml``)
    provenance, curve: empty where their files are gone
    summary: the run's own, with the benchmarks that it was asked later (see ``nanovlm evaluate --lmms-eval``)
    items: by benchmark, of the last step
    losses: of the held-out samples, at the last step
    curve: the step events of ``metrics.jsonl``, in order: step, loss, samples, seconds (of training), ...
    """

    folder: Path
    experiment: dict[str, Any]
    provenance: dict[str, Any]
    summary: dict[str, Any]
    items: dict[str, list[Item]]
    losses: Losses = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seed(self) -> int:
        return int(self.experiment["seed"])

    def controls(self, benchmark: str) -> dict[str, float]:
        """The accuracies under other conditions, as far as the summary has them."""
        found = self.summary["benchmarks"][benchmark].get("controls")
        return {name: value for name, value in (found or {}).items() if isinstance(value, int | float)}

    @classmethod
    def open(cls, folder: str | Path) -> Result:
        """Raises ConfigError for a folder that is no run's, a run that has not finished, and a damaged file."""
        run = _finished(Path(folder))
        experiment = read_yaml(run.experiment)
        with located(str(run.experiment)):
            experiment = parse_experiment(experiment).model_dump()
        summary = _summary(run)
        step = int(summary["steps"])
        own = summary["benchmarks"]
        summary["benchmarks"] = own | _added(run, step) | own
        try:
            losses = read_losses(run.validation(step))
        except DataError as error:
            raise ConfigError(str(error)) from None
        return cls(
            folder=run.folder,
            experiment=experiment,
            provenance=read_object(run.provenance) if run.provenance.is_file() else {},
            summary=summary,
            items={name: _items(run, name, step, result) for name, result in summary["benchmarks"].items()},
            losses=losses,
            curve=[event for event in _lines(run.metrics) if event.get("event") == "step"],
        )


def _finished(folder: Path) -> Run:
    """A ConfigError for whatever else the folder may be."""
    if folder.is_symlink():  # `latest` may point at another one soon
        folder = folder.parent / folder.readlink()
    run = Run(folder, "")
    if not run.experiment.is_file():
        raise ConfigError(f"{folder}: {_what_else(folder)}")
    if not run.has_begun and not run.summary.is_file():
        command = shlex.join(["nanovlm", "train", str(run.experiment), "--run-dir", str(folder)])
        raise ConfigError(f"{folder}: its run ended before its first step; start it by {command}")
    if not run.summary.is_file():
        raise ConfigError(f"{folder}: its run has not finished; go on with it by {run.resume_command}")
    return run


def _what_else(folder: Path) -> str:
    if folder.is_file():
        return f"this is a file; name its run's folder{_beside_experiment(folder)}"
    if not folder.is_dir():
        return "there is no such folder; name a run's, for example runs/quickstart/latest"
    if (folder / SWEEP).is_file():
        return "this is a sweep's folder, and one run is asked for: those in <variant>/s<seed> below it"
    if (folder / "config.json").is_file():
        return f"this is a model's folder; name its run's{_beside_experiment(folder)}"
    if runs := sorted(file.parent for file in folder.glob("*/experiment.yaml")):
        return f"it holds runs and is none itself; name them, for example {runs[-1]}"
    return "it holds no experiment.yaml, so it is no run's folder"


def _beside_experiment(place: Path) -> str:
    """Which run's folder a file or folder lies in, if it lies in one."""
    return f", which is {place.parent}" if (place.parent / "experiment.yaml").is_file() else ""


def _summary(run: Run) -> dict[str, Any]:
    summary = read_object(run.summary)
    for key, kind in NEEDED.items():
        if not isinstance(summary.get(key), kind):
            raise ConfigError(f"{run.summary} is damaged: it has no {key}; train the run again")
    return summary


def _added(run: Run, step: int) -> dict[str, Any]:
    """By name, the benchmarks that the model of a step was asked after its run."""
    files = sorted(run.folder.glob(f"evaluation/*/{step}{ADDED}"))
    return {file.parent.name: read_object(file, "remove it, and evaluate again") for file in files}


def read_object(file: Path, fix: str = "train the run again") -> dict[str, Any]:
    """What a JSON file holds."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is damaged: {error}; {fix}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} is damaged: it holds no JSON object; {fix}")
    return content


def _lines(file: Path) -> list[dict[str, Any]]:
    """What a JSONL file holds; nothing if there is no such file."""
    if not file.is_file():
        return []
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise ConfigError(f"{file}, line {number} is damaged: it is no JSON object; remove the line")
        found.append(event)
    return found


def _items(run: Run, benchmark: str, step: int, result: Any) -> list[Item]:
    """A benchmark's items, as many as its ``result`` in the summary speaks of."""
    file = run.evaluation(benchmark, step)
    asked = result.get("questions") if isinstance(result, dict) else None
    command = ["nanovlm", "evaluate", str(run.folder), "--benchmark", benchmark, "--output", str(file)]
    if isinstance(result, dict) and isinstance(result.get("lmms_eval"), dict):
        command[3:] = ["--lmms-eval", str(result["lmms_eval"].get("task"))]
    again = f"make it again by {shlex.join(command)}"
    if not file.is_file():
        raise ConfigError(f"{file} is not there, but the run's summary has {benchmark}: {again}")
    try:
        items = read_items(file)
    except DataError:
        raise ConfigError(f"{file} is damaged; {again}") from None
    if len(items) != asked or not items:
        raise ConfigError(f"{file} is damaged: {len(items)} items of {asked} questions; {again}")
    for item in items:
        if not (isinstance(item.score, int | float) and 0 <= item.score <= 1):
            raise ConfigError(f"{file} is damaged: the score of {item.id} is no number from 0 to 1; {again}")
    return items
