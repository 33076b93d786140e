"""Where the time of a training step goes: each component, the head, the optimizer, and waiting for data.

Autograd computes a backward pass in one go. To time its parts, the graph is cut behind each component, and the parts
are computed one after the other, from the loss down. The gradients are the same; the clock looks at each border, once
the device has finished, so that the parts together can take a little longer than an undivided step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nanovlm.blueprint import ROLES
from nanovlm.data.packing import PackedRow
from nanovlm.hardware import synchronise
from nanovlm.model import VisionLanguageModel
from nanovlm.training.trainer import Trainer

HEAD, OPTIMIZER, DATA_WAIT = "head", "optimizer", "data_wait"
PIECES = (*ROLES, HEAD, OPTIMIZER, DATA_WAIT)


class Laps:
    """Seconds by piece of a step."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict.fromkeys(PIECES, 0.0)
        synchronise(device)
        self.last = time.perf_counter()

    def lap(self, piece: str) -> None:
        """What was done since the last call belongs to ``piece``."""
        synchronise(self.device)
        now = time.perf_counter()
        self.seconds[piece] += now - self.last
        self.last = now


Cuts = dict[str, tuple[Tensor, Tensor]]  # by role: what the component gave, and what the next one got in its place


@contextmanager
def borders(model: VisionLanguageModel, laps: Laps) -> Iterator[Cuts]:
    """Within the block, a forward pass of ``model`` is timed by component, and its graph cut behind each."""
    cuts: Cuts = {}

    def embedded(module: nn.Module, inputs: Any) -> None:
        laps.lap("language_decoder")  # it has looked up the text

    def leave(role: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            laps.lap(role)
            if not output.requires_grad:  # nothing up to here is trained
                return output
            cuts[role] = output, output.detach().requires_grad_()
            return cuts[role][1]

        return hook

    handles = [getattr(model, role).register_forward_hook(leave(role)) for role in ROLES]
    handles.append(model.vision_encoder.register_forward_pre_hook(embedded))
    try:
        yield cuts
    finally:
        for handle in handles:
            handle.remove()


class DividedTrainer(Trainer):
    """A trainer that can also take a step piece by piece."""

    laps: Laps | None = None

    def divided_step(self) -> dict[str, float]:
        """One step, and the seconds that each piece took."""
        self.laps = Laps(self.device)
        try:
            self.train_step()
            self.laps.lap(OPTIMIZER)
            return self.laps.seconds
        finally:
            self.laps = None

    def backward(self, row: PackedRow, num_targets: int) -> Tensor:
        if self.laps is None:
            return super().backward(row, num_targets)
        with self.memory.row(row, self.step + 1):
            row = row.to(self.device)
            self.laps.lap(DATA_WAIT)
            with self.precision.autocast(), borders(self.model, self.laps) as cuts:
                loss: Tensor = self.model(row) / num_targets
            self.optimizer.backward(loss)
            self.laps.lap(HEAD)
            for role, (output, cut) in reversed(cuts.items()):
                if cut.grad is not None:
                    output.backward(cut.grad)
                self.laps.lap(role)
        return loss.detach()
