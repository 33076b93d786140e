"""Files and folders that are whole or not there, even if the process is killed or the power fails."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanovlm.errors import ConfigError

PART, OLD = ".part", ".old"  # what is being written, and what it takes the place of
DTYPES = {  # by their names in safetensors files
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_whole(file: Path, text: str) -> None:
    """Write text in UTF-8 to a temporary name beside ``file``, and rename it; missing folders are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = _beside(file, PART)
    try:
        part.write_text(text, encoding="utf-8")
        _sync(part)
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync(file.parent)


@contextmanager
def locked(file: Path, refusal: str) -> Iterator[None]:
    """Within the block no other process holds the lock ``file``; a ConfigError with ``refusal`` if one does already."""
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system gives it back, however a process ends
        except BlockingIOError:
            raise ConfigError(refusal) from None
        yield


def is_locked(file: Path) -> bool:
    """Whether some process holds this lock file."""
    if not file.is_file():
        return False
    with file.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder to write into, which then takes the place of ``target``: whole and on the disk, or not at all.

    A process that is killed on the way leaves what was there before or what is new. In the moment between two renames
    it is at ``<target>.old`` only; ``restore`` brings it back.
    """
    part, old = _beside(target, PART), _beside(target, OLD)
    restore(target)
    part.mkdir()
    try:
        yield part
        for path in (*part.rglob("*"), part):  # names may reach the disk before contents do
            _sync(path)
        if target.exists():
            target.rename(old)
        part.rename(target)
        _sync(target.parent)
    except BaseException:
        restore(target)
        raise
    _delete(old)


def restore(target: Path) -> None:
    """Clear away what a killed process left of writing ``target``; what it had moved aside comes back."""
    part, old = _beside(target, PART), _beside(target, OLD)
    if old.exists() and not target.exists():
        old.rename(target)
    for left_over in (part, old):
        _delete(left_over)


def remove(target: Path) -> None:
    """Delete a folder so that no half of it is ever seen: a killed process leaves it under another name."""
    with suppress(OSError):  # the next time, then
        _delete(target.rename(_beside(target, PART)))


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Write a safetensors file; its size in bytes and its SHA-256. The tensors are on the CPU.

    The library's own ``save_file`` hides what kind of error the disk gave and, before version 0.8, copied all tensors
    once more and let no other thread run meanwhile.
    """
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())  # so each is aligned to its elements
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    pieces: Iterator[bytes | memoryview] = (_bytes(tensor) for _, tensor in ordered)
    with file.open("wb") as content:
        for piece in chain((len(text).to_bytes(8, "little"), text), pieces):
            digest.update(piece)
            content.write(piece)
    return {"bytes": 8 + len(text) + end, "sha256": digest.hexdigest()}


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's elements as they lie in memory."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)


def _delete(path: Path) -> None:
    """What cannot be deleted now (a file on a network disk that is still open) is left for the next time."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk; a full disk may show here only."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EBADF)):  # some file systems sync no folders
            raise
    finally:
        os.close(descriptor)
