"""Reads an offline W&B run back: records of protobuf in the log format of LevelDB, as every version writes them."""

import json
import struct
import time
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7  # a record never begins in the last bytes of a block that cannot hold a header
WHOLE, LAST = 1, 4  # kinds of a record's pieces


class RecordedRun:
    """What the one run in a ``wandb`` folder recorded."""

    def __init__(self, folder: Path) -> None:
        (self.folder,) = folder.glob("offline-run-*")
        (file,) = self.folder.glob("*.wandb")
        patience = time.monotonic() + 20  # the library's own process may still be writing when `finish` returns
        self.records: list[Any] = []
        while not self.exit_codes and time.monotonic() < patience:
            time.sleep(0.05)
            self.records = list(records(file.read_bytes()))

    def of(self, kind: str) -> list[Any]:
        return [getattr(record, kind) for record in self.records if record.WhichOneof("record_type") == kind]

    @property
    def config(self) -> dict[str, Any]:
        return values(self.of("run")[0].config.update)

    @property
    def history(self) -> dict[int, dict[str, Any]]:
        """The metrics of each step."""
        found: dict[int, dict[str, Any]] = {}
        for record in self.of("history"):
            metrics = values(record.item)
            found.setdefault(metrics["_step"], {}).update(metrics)
        return found

    @property
    def summary(self) -> dict[str, Any]:
        return {key: value for record in self.of("summary") for key, value in values(record.update).items()}

    @property
    def exit_codes(self) -> list[int]:
        return [record.exit_code for record in self.of("exit")]

    def tables(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(file.read_text()) for file in sorted(self.folder.rglob(f"{name}_*.table.json"))]


def records(data: bytes):
    from wandb.proto.wandb_internal_pb2 import Record

    at, whole = HEADER, b""  # the file begins with seven bytes of its own
    while at + HEADER <= len(data):
        if (left := BLOCK - at % BLOCK) < HEADER:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        whole += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if at > len(data):
            return  # not all of it is written yet
        if kind in (WHOLE, LAST):
            yield Record.FromString(whole)
            whole = b""


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
