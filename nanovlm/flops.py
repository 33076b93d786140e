"""What training costs in floating point operations (FLOPs), and how many a device can do.

The cost of a row is linear in four of its sizes: pictures, tokens, pairs of tokens of one sample, and targets. So a few
small rows, counted on the ``meta`` device, tell the cost of any. Attention counts whole squares, and what is computed
twice or for filling does not count (model FLOPs; Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from nanovlm.data.conversation import Tokens
from nanovlm.data.packing import Example, PackedRow, pack_row
from nanovlm.model import VisionLanguageModel

# Of tensor cores in bf16 or fp16 without sparsity, as NVIDIA's data sheets have them. The first name that fits counts.
PEAKS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
    "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip


class Work(NamedTuple):
    """What the cost of rows depends on; filling does not count."""

    images: int = 0
    tokens: int = 0
    pairs: int = 0
    """For each sample of L tokens L * L."""
    targets: int = 0

    @classmethod
    def of(cls, rows: Iterable[PackedRow]) -> Work:
        each = [(row.num_images, row.num_tokens, row.num_pairs, row.num_targets) for row in rows]
        return cls(*map(sum, zip(*each, strict=True))) if each else cls()

    @classmethod
    def together(cls, works: Iterable[Work]) -> Work:
        return cls(*map(sum, zip(*works, strict=True)))


@dataclass(frozen=True)
class Cost:
    """FLOPs, forward and backward; a multiplication and an addition are two."""

    per_image: float
    per_token: float
    per_pair: float
    """For each pair of tokens of a sample of L tokens, of which there are L * L."""
    per_target: float

    @classmethod
    def of(cls, model: VisionLanguageModel, trained: Iterable[str]) -> Cost:
        """``model`` is on ``meta``; the components that are not ``trained`` need no gradients of their weights."""
        model.train_only(trained)
        # pictures, text tokens and targets
        rows = [_row(model, *sizes) for sizes in ((1, 16, 4), (1, 16, 8), (1, 64, 4), (2, 16, 4))]
        sizes = torch.tensor([Work.of([row]) for row in rows], dtype=torch.float64)
        counts = torch.tensor([count_flops(model, row) for row in rows], dtype=torch.float64)
        return cls(*torch.linalg.solve(sizes, counts).round().tolist())

    def of_rows(self, rows: Iterable[PackedRow]) -> float:
        return self.of_work(Work.of(rows))

    def of_work(self, work: Work) -> float:
        return (
            self.per_image * work.images
            + self.per_token * work.tokens
            + self.per_pair * work.pairs
            + self.per_target * work.targets
        )


def _row(model: VisionLanguageModel, images: int, text_tokens: int, targets: int) -> PackedRow:
    size = model.vision_encoder.image.size
    supervised = [False] * (text_tokens - targets) + [True] * targets
    tokens = Tokens([0] * text_tokens, supervised, [0] * images)
    return pack_row([Example(tokens, torch.empty(images, 3, size, size, dtype=torch.uint8))], model.num_image_tokens)


def count_flops(model: VisionLanguageModel, row: PackedRow) -> int:
    """FLOPs of a forward and backward pass, both on ``meta``."""
    counter = FlopCounterMode(display=False)
    with counter:
        loss = model(row.to("meta"))
        if loss.requires_grad:
            loss.backward()
    return counter.get_total_flops()


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOPs a second that the device can do in half precision; None where its data sheet is not known here."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for words, peak in PEAKS.items() if re.search(rf"\b{words}\b", name)), None)
