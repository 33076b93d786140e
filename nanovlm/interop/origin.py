"""Where a model folder's weights come from: what the run that it lies in has written down."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanovlm.blueprint import located
from nanovlm.experiment import parse_experiment
from nanovlm.lab.results import Result
from nanovlm.training.run import Run
from nanovlm.weights import read_json
from nanovlm.yaml_reader import read_yaml


@dataclass(frozen=True)
class Origin:
    """A model folder, and what is known of its training.

    run: None where the folder lies in no run's folder; then nothing is known
    experiment, provenance: the run's, resolved; empty where there are none
    result: None where the run has not finished
    """

    folder: Path
    run: Run | None = None
    experiment: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    result: Result | None = None

    @classmethod
    def of(cls, folder: Path) -> Origin:
        """Raises ConfigError or CheckpointError where a file of the run is damaged."""
        folder = folder.resolve()  # `latest` may point at another run soon
        run = Run(folder.parent, "")
        if not run.experiment.is_file() or not (run.has_begun or run.summary.is_file()):
            return cls(folder)
        if run.summary.is_file():
            result = Result.open(run.folder)
            return cls(folder, run, result.experiment, result.provenance, result)
        with located(str(run.experiment)):
            experiment = parse_experiment(read_yaml(run.experiment)).model_dump()
        return cls(folder, run, experiment, read_json(run.provenance))

    @property
    def summary(self) -> dict[str, Any]:
        return self.result.summary if self.result else {}

    @property
    def is_best(self) -> bool:
        """Whether these are the weights of the lowest validation loss, not the run's last ones."""
        return self.run is not None and self.folder.name == self.run.best_model.name

    @property
    def step(self) -> int | None:
        """The step that the weights are of; None where nobody wrote it down."""
        return self.summary.get("best_step" if self.is_best else "steps")

    @property
    def measured(self) -> Result | None:
        """The run's results, if they are of these very weights."""
        return self.result if self.step is not None and self.step == self.summary.get("steps") else None
