"""Results as JSON files: what was measured, on what, when, and by which command.

A file under ``experiments/results/`` holds one result, an object with these keys:

    part        what was measured: step, loader, generate, memory or against
    experiment  the experiment's name
    command     the command line that measures it again
    synthetic   whether the samples were made of nothing
    date        when, in UTC (ISO 8601)
    hardware    on what: see ``hardware.hardware``; ``label`` in a few words
    figures     what was measured: what the part's function returns (step.py, loader.py, ...)

A figure's name ends with its unit, if it has one: ``_bytes``, ``_ms``, ``seconds``, ``_per_second``; shares
(``mfu``, ``data_wait``) are of 1.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nanovlm.errors import ConfigError
from nanovlm.files import write_whole

FOLDER = Path("experiments", "results")


@dataclass(frozen=True)
class Result:
    part: str
    experiment: str
    command: str
    synthetic: bool
    hardware: dict[str, Any]
    figures: dict[str, Any]
    date: str

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def write(self, file: Path) -> None:
        """Raises ConfigError where no file can be made."""
        try:
            write_whole(file, self.to_json() + "\n")
        except OSError as error:
            raise ConfigError(f"--output {file}: cannot be written: {error.strerror}") from None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_results(folder: Path = FOLDER) -> list[Result]:
    """All results in ``folder``, by the names of their files."""
    results = []
    for file in sorted(folder.glob("*.json")):
        try:
            results.append(Result(**json.loads(file.read_text(encoding="utf-8"))))
        except (ValueError, TypeError) as error:
            keys = ", ".join(field.name for field in fields(Result))
            raise ConfigError(f"{file}: is no result of `nanovlm bench` (an object of {keys}): {error}") from None
    if not results:
        raise ConfigError(
            f"{folder}: holds no result; run this from the root of a checkout, or keep one with "
            "`nanovlm bench EXPERIMENT --output FILE`"
        )
    return results
