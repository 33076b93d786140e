"""What a run left behind, for tests to look at."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

FAULTY = Path(__file__).with_name("faulty_plugin.py")  # a dataset whose samples can be broken


class Finished:
    """A run folder, and the summary that training returned."""

    def __init__(self, folder: Path, summary: dict[str, Any]) -> None:
        self.folder, self.summary = folder, summary

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if line["event"] == kind]

    def metric(self, name: str) -> list[float]:
        return [event[name] for event in self.events("step") if name in event]

    def provenance(self) -> dict[str, Any]:
        return json.loads((self.folder / "provenance.json").read_text())

    def tensors(self, model: str = "model") -> dict[str, torch.Tensor]:
        return load_file(self.folder / model / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)
