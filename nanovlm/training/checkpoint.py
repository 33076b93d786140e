"""Checkpoints: all that a run needs to go on from a step, written while training goes on.

The checkpoint of step 500 is the folder ``<run>/checkpoints/00000500``:

    model.safetensors, ...   the tensors, in as many files as the snapshot names
    state.json               version  of this layout
                             step     that was finished last
                             facts    all that is no tensor: counters, positions, ...
                             files    each file's size in bytes and its SHA-256
                             sha256   of all the above

Its name appears when everything in it is on the disk, so a killed process or a full disk leaves the one before it as
the newest. What happens to it later (a file cut off, a bit flipped) is found by the checksums before anything is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import re
import shlex
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nanovlm.errors import CheckpointError
from nanovlm.files import DTYPES, OLD, PART, remove, restore, whole_folder, write_tensors
from nanovlm.weights import read_json

VERSION = 1
STATE = "state.json"
SUFFIX = ".safetensors"
NAME = re.compile(rf"(\d{{8,}})({re.escape(OLD)})?")
LEFT_OVER = re.compile(rf"(\d{{8,}})({re.escape(OLD)}|{re.escape(PART)})")
FLOAT = "$float"  # the key of a number that JSON does not have: nan, inf, -inf
REMEDIES = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space or raise your quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
}


@dataclass(frozen=True)
class Snapshot:
    """A run's state after a step.

    tensors: on the CPU, by file (``model``, ``optimizer``, ...) and name.
    facts: what JSON holds: words, numbers (exactly, not finite ones too), lists, and mappings with words as keys.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]

    @classmethod
    def of(cls, step: int, tensors: dict[str, dict[str, Tensor]], facts: dict[str, Any]) -> Snapshot:
        """A copy, complete when this returns: training may then go on, and change what it was taken from.

        Raises TypeError, which is a bug, for facts that JSON would not give back as they are.
        """
        copies = {
            file: {name: _copied(tensor, f"{file}: {name}") for name, tensor in named.items()}
            for file, named in tensors.items()
        }
        for device in {tensor.device for named in tensors.values() for tensor in named.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()  # once for all copies
        return cls(step, copies, _decoded(_encoded(facts, "facts")))


class Checkpoints:
    """The checkpoints of one run, at most one of them being written by a thread of its own.

    A run uses one of these for reading and writing: what could not be read is deleted when the run has gone on.

    broken: a sentence for each checkpoint that ``newest`` had to pass over.
    last: the step of the checkpoint that was read, or began to be written, last; None after one that failed.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last={keep_last}: the newest checkpoint is always kept")
        self.folder, self.keep_last = folder, keep_last
        self.broken: list[str] = []
        self.last: int | None = None
        self._passed_over: set[int] = set()
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: futures.Future[None] | None = None

    def write(self, snapshot: Snapshot) -> None:
        """Begin to write ``snapshot``, once the one before it is written; raises CheckpointError if that one failed."""
        self.wait()
        self._writing = self._thread.submit(self._write, snapshot)
        self.last = snapshot.step

    def wait(self) -> None:
        """Until everything is on the disk; raises CheckpointError, once, if it could not be written."""
        if self._writing is not None:
            futures.wait([self._writing])
            done, self._writing = self._writing, None
            if done.exception():
                self.last = None
            done.result()

    def steps(self) -> list[int]:
        """The steps whose checkpoints are on the disk, ascending; whether they are whole is not looked at."""
        return sorted(self._folders())

    def newest(self) -> Snapshot | None:
        """The newest whole checkpoint; None where there is no checkpoint at all.

        Its tensors are mapped from the disk, not yet read into memory. Raises CheckpointError where none is whole.
        """
        snapshot, problems = self._search()
        if snapshot is None:
            if problems:
                raise CheckpointError(
                    "\n- ".join([f"{self.folder} has no whole checkpoint:", *problems.values()])
                    + "\nPut a good copy of one there, or start the run again"
                )
            return None
        instead = f"the checkpoint of step {snapshot.step} is used instead"
        self.broken = [f"{problem}; {instead}" for problem in problems.values()]
        self._passed_over, self.last = set(problems), snapshot.step
        return snapshot

    def _search(self) -> tuple[Snapshot | None, dict[int, str]]:
        """The newest whole checkpoint, and by step what is wrong with those after it."""
        problems: dict[int, str] = {}
        for step, folder in self._folders().items():
            try:
                return _read(folder, step), problems
            except CheckpointError as error:
                problems[step] = str(error)
        return None, problems

    def _folders(self) -> dict[int, Path]:
        """By step, the newest first. A killed process may have left one under the name that it moves old ones to."""
        try:
            names = [(match, path) for path in self.folder.iterdir() if (match := NAME.fullmatch(path.name))]
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CheckpointError(f"the checkpoints in {self.folder} cannot be read: {_reason(error)}") from None
        return dict(sorted(((int(match[1]), path) for match, path in names), reverse=True))  # the .old ones first

    def _write(self, snapshot: Snapshot) -> None:
        try:
            self.folder.mkdir(exist_ok=True)  # not its parents: a run's folder that is gone was on a lost disk
            for path in list(self.folder.iterdir()):
                if match := LEFT_OVER.fullmatch(path.name):
                    restore(path.with_name(match[1]))
            with whole_folder(self.folder / f"{snapshot.step:08d}") as part:
                files = {f"{file}{SUFFIX}": tensors for file, tensors in snapshot.tensors.items()}
                written = {file: write_tensors(part / file, tensors) for file, tensors in files.items()}
                facts = _encoded(snapshot.facts, "facts")
                state = {"version": VERSION, "step": snapshot.step, "facts": facts, "files": written}
                state["sha256"] = _checksum(state)
                (part / STATE).write_text(json.dumps(state, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(self.failure(f"checkpoint of step {snapshot.step}", error)) from error
        self._prune(snapshot.step)

    def failure(self, what: str, error: OSError) -> str:
        """That something could not be written, what is left of the run, and how to go on."""
        try:
            last, _ = self._search()
        except CheckpointError:
            last = None
        remedy = REMEDIES.get(error.errno or 0, f"see to it that {self.folder} can be written")
        if last is None:
            return (
                f"{what} could not be written: {_reason(error)}; there is no whole checkpoint in {self.folder}; "
                f"{remedy}, then start the run again"
            )
        return (
            f"{what} could not be written: {_reason(error)}; the last whole checkpoint is of step {last.step} "
            f"({self._folders()[last.step]}); {remedy}, then go on with "
            f"`nanovlm train --resume {shlex.quote(str(self.folder.parent))}`"
        )

    def _prune(self, written: int) -> None:
        """Delete what ``newest`` passed over, which the run has gone on without, and all but the last of the others."""
        folders = self._folders()
        passed_over = self._passed_over - {written}
        others = [step for step in folders if step not in passed_over]  # the newest first
        for step in {*passed_over, *others[self.keep_last :]} - {written}:
            if step in folders:
                remove(folders[step])
        self._passed_over = set()


def _read(folder: Path, step: int) -> Snapshot:
    """Check a checkpoint and open it; a CheckpointError says what is wrong with it."""
    try:
        state = _read_state(folder, step)
        files = {folder / Path(name).name: expected for name, expected in state["files"].items()}  # never outside of it
        for file, expected in files.items():
            _check(file, expected)
        tensors = {file.name.removesuffix(SUFFIX): load_file(file) for file in files}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read: {_reason(error)}") from None
    return Snapshot(state["step"], tensors, _decoded(state["facts"]))


def _read_state(folder: Path, step: int) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file, not the folder of a checkpoint")
    if not any(folder.iterdir()):
        raise CheckpointError(f"{folder} is empty")
    file = folder / STATE
    _check_there(file)
    state: dict[str, Any] = read_json(file)
    if state.get("version") != VERSION:
        raise CheckpointError(f"{file} is of version {state.get('version')!r}; this nanovlm reads version {VERSION}")
    if state.pop("sha256", None) != _checksum(state):
        raise CheckpointError(f"{file} is not as it was written: its checksum differs")
    if state["step"] != step:
        raise CheckpointError(f"{folder} is of step {state['step']} by its {STATE}: it was renamed or copied")
    return state


def _check_there(file: Path) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file.parent} has no {file.name}")
    if not file.stat().st_size:
        raise CheckpointError(f"{file} is empty")


def _check(file: Path, expected: dict[str, Any]) -> None:
    _check_there(file)
    size = file.stat().st_size
    if size != expected["bytes"]:
        raise CheckpointError(f"{file} has {size:,} bytes, not the {expected['bytes']:,} that were written")
    with file.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != expected["sha256"]:  # read piece by piece
            raise CheckpointError(f"{file} is not as it was written: its checksum differs")


def _checksum(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _copied(tensor: Tensor, where: str) -> Tensor:
    if tensor.dtype not in DTYPES:
        raise CheckpointError(f"{where} is {tensor.dtype}, which no checkpoint holds: make it a non-persistent buffer")
    if tensor.is_cuda:  # into pinned memory, so that no copy is waited for by itself
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return pinned.copy_(tensor.detach(), non_blocking=True)
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _encoded(value: Any, where: str) -> Any:
    """A copy of ``value`` that JSON gives back as it is; TypeError for what it would change."""
    if isinstance(value, dict):
        if wrong := [key for key in value if not isinstance(key, str) or key == FLOAT]:
            raise TypeError(f"{where}: JSON would not give back the key {wrong[0]!r}")
        return {key: _encoded(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_encoded(item, f"{where}.{index}") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {FLOAT: str(value)}
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{where}: JSON would not give back a {type(value).__name__}")


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {FLOAT}:
            return float(value[FLOAT])
        return {key: _decoded(item) for key, item in value.items()}
    return [_decoded(item) for item in value] if isinstance(value, list) else value


def _reason(error: Exception) -> str:
    """What the operating system or a library says, as the end of a sentence of ours."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text[0].lower() + text[1:]
