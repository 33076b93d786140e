"""Who is told of a run's moments, and the log that always is."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nanovlm.components import ComponentConfig, Tracker
from nanovlm.evaluation.evaluator import Answered

PRIVATE = "_"  # begins the names of what only the trainer needs to know


class Trackers:
    """A run's trackers as one. Metrics are told one step late, so that the device is never waited for."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = trackers
        self.late: Late | None = None

    def started(self, facts: dict[str, Any]) -> None:
        self._tell("started", facts)

    def step_finished(self, metrics: dict[str, Any]) -> None:
        """``metrics`` may hold scalar tensors of a device that is still at work."""
        self.flush()
        self.late = Late(metrics)

    def flush(self) -> dict[str, Any]:
        """Tell what is still untold, if anything; what it was, as plain numbers."""
        late, self.late = self.late.read() if self.late else {}, None
        if late:
            self._tell("step_finished", {name: value for name, value in late.items() if not name.startswith(PRIVATE)})
        return late

    def evaluated(self, results: dict[str, Any], answered: Sequence[Answered] = ()) -> None:
        self._tell("evaluated", results, answered)

    def finished(self, summary: dict[str, Any]) -> None:
        self._tell("finished", summary)

    def failed(self, error: BaseException) -> None:
        """Let every tracker leave things tidy; what goes wrong there must not hide ``error``."""
        try:
            self.flush()
        except Exception as another:
            error.add_note(f"and the last step's metrics were lost: {another!r}")
        for tracker in self.trackers:
            try:
                tracker.failed(error)
            except Exception as another:
                error.add_note(f"and the tracker {type(tracker).__name__} did not close: {another!r}")

    def _tell(self, moment: str, *facts: Any) -> None:
        for tracker in self.trackers:
            getattr(tracker, moment)(*facts)


class Late:
    """Metrics on their way from the device, all in one copy. Reading them waits for that copy, and no later work."""

    def __init__(self, metrics: dict[str, Any]) -> None:
        self.metrics = metrics
        self.names = [name for name, value in metrics.items() if isinstance(value, Tensor)]
        self.copied: torch.cuda.Event | None = None
        if self.names:
            values = torch.stack([metrics[name].float() for name in self.names])
            self.values = values.to("cpu", non_blocking=values.is_cuda)
            if values.is_cuda:
                self.copied = torch.cuda.Event()
                self.copied.record()

    def read(self) -> dict[str, Any]:
        if self.copied:
            self.copied.synchronize()
        return self.metrics | (dict(zip(self.names, self.values.tolist(), strict=True)) if self.names else {})


class MetricsLog(Tracker):
    """``metrics.jsonl``: every step and every evaluation, one JSON line each. Always on."""

    class Config(ComponentConfig):
        pass

    def step_finished(self, metrics: dict[str, float]) -> None:
        self._append({"event": "step", **metrics})

    def evaluated(self, results: dict[str, Any], answered: Sequence[Answered] = ()) -> None:
        self._append({"event": "evaluation", **results})

    def _append(self, line: dict[str, Any]) -> None:
        numbers = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        with self.run.metrics.open("a", encoding="utf-8") as log:
            log.write(json.dumps(numbers) + "\n")  # JSON has no NaN
