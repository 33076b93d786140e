"""The folder of an ablation's runs: which there are, and what became of each, read from the disk alone.

``<folder>/ablation.yaml`` says what was asked. A run is ``<variant>/s<seed>/``, an ordinary run folder; beside it are
``s<seed>.yaml``, the experiment that it was started with, and ``s<seed>.log``, what it printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nanovlm.errors import ConfigError
from nanovlm.files import is_locked, locked, write_whole
from nanovlm.lab.results import SWEEP
from nanovlm.training.run import Run
from nanovlm.yaml_reader import dump_yaml, read_yaml

if TYPE_CHECKING:
    from nanovlm.lab.ablation import Ablation

State = Literal["waiting", "running", "done", "failed", "stopped"]
LOG_END = 2**16  # bytes of a log that are read: enough for any traceback
SPEAKER = "nanovlm: "  # begins what nanovlm says of itself in the end
STOPPED = f"{SPEAKER}stopped"
GO_ON = "; go on with "  # the sweep does
ERROR = re.compile(r"(\w+\.)*[A-Z]\w*(:|$)")  # "torch.OutOfMemoryError: CUDA out of memory"


@dataclass(frozen=True)
class RunState:
    """What became of one run; ``reason`` is its last telling words where it failed or stopped."""

    variant: str
    seed: int
    folder: Path
    state: State
    reason: str
    log: Path


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep, and where everything of it is."""

    variant: str
    seed: int
    folder: Path

    @property
    def label(self) -> str:
        return f"{self.variant}/s{self.seed}"

    @property
    def experiment(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def run(self) -> Run:
        return Run(self.folder, "")

    @property
    def is_done(self) -> bool:
        return self.run.summary.is_file()

    @property
    def has_checkpoint(self) -> bool:
        return any(self.run.checkpoints.glob("*"))

    @property
    def is_begun(self) -> bool:
        """Whether there is anything of it that is not trained again."""
        return self.is_done or self.has_checkpoint

    @property
    def is_training(self) -> bool:
        """Whether some process is, of whichever sweep."""
        return is_locked(self.folder / ".lock")

    def state(self) -> RunState:
        """As its folder tells it."""
        return self.is_("running") if self.is_training and not self.is_done else self.ended()

    def ended(self) -> RunState:
        """The same, known that no process trains."""
        if self.is_done:
            return self.is_("done")
        if words := self.last_words():
            if words.startswith(STOPPED):  # "nanovlm: stopped after step 3 of 9; go on with ..."
                return self.is_("stopped", words.removeprefix(STOPPED).partition(GO_ON)[0].lstrip(": "))
            interrupted = words == KeyboardInterrupt.__name__
            return self.is_("stopped" if interrupted else "failed", words.removeprefix(SPEAKER))
        if self.run.has_begun:
            return self.is_("stopped", "its process is gone, and left no word")
        return self.is_("waiting")

    def is_(self, state: State, reason: str = "") -> RunState:
        return RunState(self.variant, self.seed, self.folder, state, reason, self.log)

    def last_words(self) -> str:
        return last_words(tail(self.log, LOG_END)) if self.log.is_file() else ""


@dataclass(frozen=True)
class Sweep:
    """What was asked of a sweep. ``variants``: each one's changes, by its name."""

    folder: Path
    name: str
    variants: dict[str, dict[str, Any]]
    baseline: str
    seeds: tuple[int, ...]
    match: str

    @classmethod
    def of(cls, ablation: Ablation, folder: Path) -> Sweep:
        variants = {variant.name: variant.changes for variant in ablation.variants}
        return cls(folder, ablation.name, variants, ablation.baseline, ablation.seeds, ablation.match)

    @classmethod
    def open(cls, folder: Path) -> Sweep:
        """The one that this folder holds; a ConfigError if it holds none."""
        file = folder / SWEEP
        if not file.is_file():
            raise ConfigError(f"{folder}: it holds no {SWEEP}, so it is no sweep's folder")
        content = read_yaml(file)
        try:
            seeds, variants = tuple(content["seeds"]), dict(content["variants"])
            return cls(folder, content["name"], variants, content["baseline"], seeds, content["match"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{file}: it is no record of a sweep ({error!r}); restore it, or start anew") from None

    @property
    def before(self) -> Sweep | None:
        """The one that the folder holds already."""
        return Sweep.open(self.folder) if (self.folder / SWEEP).is_file() else None

    def take_over(self) -> None:
        """Rename the folders of variants that had other names: one value more may change what tells the others apart.

        The record is renamed with them, so that the question as it was before finds its runs too.
        """
        if not (before := self.before):
            return
        called = self.renamed(before)
        for old, new in called.items():
            if (self.folder / old).is_dir() and not (self.folder / new).exists():
                (self.folder / old).rename(self.folder / new)
        if called:
            variants = {called.get(name, name): changes for name, changes in before.variants.items()}
            replace(before, variants=variants, baseline=called.get(before.baseline, before.baseline)).write()

    def renamed(self, before: Sweep) -> dict[str, str]:
        """The new names of variants that had others before, by those."""
        return {
            old: new
            for new, changes in self.variants.items()
            for old, recorded in before.variants.items()
            if recorded == changes and new not in before.variants and old not in self.variants
        }

    def write(self) -> None:
        content = {
            "name": self.name,
            "baseline": self.baseline,
            "seeds": list(self.seeds),
            "match": self.match,
            "variants": self.variants,
        }
        write_whole(self.folder / SWEEP, dump_yaml(content))

    @property
    def runs(self) -> list[SweepRun]:
        """In the order in which they are started: all variants of a seed first, which can be compared already."""
        return [
            SweepRun(variant, seed, self.folder / variant / f"s{seed}")
            for seed in self.seeds
            for variant in self.variants
        ]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within the block no other sweep works in this folder; a ConfigError if one does already."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--sweep-dir {self.folder}: no folder can be made there: {error.strerror}") from None
        refusal = f"{self.folder}: another sweep is under way here; wait for it, or stop it"
        with locked(self.folder / ".lock", refusal):
            yield


def states(sweep: Sweep) -> list[RunState]:
    """What became of each run so far; it may be asked at any time, by any process."""
    return [run.state() for run in sweep.runs]


def tail(file: Path, most: int) -> str:
    """A file's last bytes, as text."""
    with file.open("rb") as content:
        content.seek(max(0, content.seek(0, 2) - most))
        return content.read().decode(errors="replace")


def last_words(log: str) -> str:
    """What the last process that wrote into a log said of its end: nanovlm's message, or a traceback's last line."""
    lines = re.split(r"^\$ ", log, flags=re.MULTILINE)[-1].splitlines()[1:]
    for at, line in reversed(list(enumerate(lines))):
        if line.startswith(SPEAKER):
            return line
        if ERROR.match(line) and any(above.startswith("Traceback (most") for above in lines[:at]):
            return line
    return ""
