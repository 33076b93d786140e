"""AdamW with a learning rate for each component, warmed up linearly and lowered along a cosine."""

from __future__ import annotations

import torch
from torch import Tensor

from nanovlm.blueprint import ROLES
from nanovlm.errors import ConfigError
from nanovlm.experiment import Training
from nanovlm.model import VisionLanguageModel
from nanovlm.training.precision import Precision
from nanovlm.training.schedule import schedule


class Optimizer:
    """One update a step: unscale, clip, AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101), next learning rate.

    A component with learning rate 0 is frozen: it gets no gradient, and its forward pass keeps nothing for one. An
    update whose gradient is no finite number is lost: the weights and AdamW's moments stay as they are. ``lost`` counts
    those, and ``lost_in_a_row`` the last ones; both are on the device, which is not waited for.
    """

    def __init__(self, model: VisionLanguageModel, config: Training, total_steps: int, precision: Precision) -> None:
        self.config, self.total_steps, self.scaler = config, total_steps, precision.scaler
        self.step_number = 0
        groups = []
        for role in ROLES:
            module, peak = getattr(model, role), getattr(config.learning_rate, role)
            module.requires_grad_(peak > 0)
            parameters = list(module.parameters())
            if peak > 0 and parameters:
                groups.append({"params": parameters, "role": role, "peak": peak})
        if not groups:
            raise ConfigError("training.learning_rate: every component is frozen, so there is nothing to train")
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        betas = (config.betas[0], config.betas[1])
        self.adamw = torch.optim.AdamW(groups, betas=betas, weight_decay=config.weight_decay, fused=True)
        self.lost = self.lost_in_a_row = torch.zeros((), device=model.device)
        self._set_learning_rates()

    @property
    def learning_rates(self) -> dict[str, float]:
        return {group["role"]: group["lr"] for group in self.adamw.param_groups}

    def backward(self, loss: Tensor) -> None:
        if loss.requires_grad:  # not so where only the projector is trained, and a row has no picture
            self.scaler.scale(loss).backward()

    def step(self) -> Tensor:
        """Update the weights from the gradients gathered since the last call; the gradient's norm before clipping."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if not gradients:
            self.advance()
            return torch.zeros(())
        self.scaler.unscale_(self.adamw)
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.max_grad_norm, norm)
        self._update(found_inf=(~norm.isfinite()).float())
        self.adamw.zero_grad()
        self.advance()
        return norm

    def _update(self, found_inf: Tensor) -> None:
        """AdamW's step, which its fused kernel leaves out where ``found_inf`` is 1."""
        self.lost = self.lost + found_inf
        self.lost_in_a_row = (self.lost_in_a_row + found_inf) * found_inf
        if self.scaler.is_enabled():  # it looks for itself, and lowers its scale
            self.scaler.step(self.adamw)
            self.scaler.update()
        else:
            self.adamw.found_inf = found_inf  # type: ignore[attr-defined]  # what the scaler sets, too
            self.adamw.step()

    def advance(self) -> None:
        """Go on to the next step's learning rates."""
        self.step_number += 1
        self._set_learning_rates()

    def _set_learning_rates(self) -> None:
        factor = schedule(self.step_number, self.total_steps, self.config)
        for group in self.adamw.param_groups:
            group["lr"] = group["peak"] * factor
