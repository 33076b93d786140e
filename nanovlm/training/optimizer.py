"""AdamW with a learning rate for each component, warmed up linearly and lowered along a cosine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nanovlm.errors import ConfigError
from nanovlm.experiment import Training
from nanovlm.model import VisionLanguageModel
from nanovlm.training.precision import Precision
from nanovlm.training.schedule import schedule


class Optimizer:
    """One update a step: unscale, clip, AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101), next learning rate.

    A component with learning rate 0 is frozen: it gets no gradient, and its forward pass keeps nothing for one. So is
    another one up to its ``frozen_until_step``. An update whose gradient is no finite number is lost: the weights and
    AdamW's moments stay as they are. ``lost`` counts those, and ``lost_in_a_row`` the last ones; both are on the
    device, which is not waited for.
    """

    def __init__(self, model: VisionLanguageModel, config: Training, total_steps: int, precision: Precision) -> None:
        self.config, self.total_steps, self.scaler = config, total_steps, precision.scaler
        self.step_number = 0
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        model.train_only(config.trained_roles)
        self.groups = {role: found for role in config.trained_roles if (found := model.trainable(role))}
        self._check_groups()
        options = [
            {"params": parameters, "role": role, "weight_decay": getattr(config.weight_decay, role)}
            for role, parameters in self.groups.items()
        ]
        betas = (config.betas[0], config.betas[1])
        self.adamw = torch.optim.AdamW(options, betas=betas, fused=True)
        self.lost = self.lost_in_a_row = torch.zeros((), device=model.device)
        self.scaler.scale(self.lost)  # makes its scale when first used, and a rank's first step may have no row
        self._set_learning_rates()

    def _check_groups(self) -> None:
        if not self.groups:
            raise ConfigError("training.learning_rate: every component is frozen, so there is nothing to train")
        thaws = {role: getattr(self.config.frozen_until_step, role) for role in self.groups}
        if min(thaws.values()):
            raise ConfigError("training.frozen_until_step: something must be trained from the first step on")
        for role, step in thaws.items():
            if step >= self.total_steps:
                raise ConfigError(
                    f"training.frozen_until_step.{role}={step}: the run has {self.total_steps} steps; lower it, or set "
                    f"training.learning_rate.{role}=0 to freeze it for good"
                )

    @property
    def learning_rates(self) -> dict[str, float]:
        """Those of the components that are trained in this step."""
        return {group["role"]: group["lr"] for group in self.adamw.param_groups if self.trains(group["role"])}

    def trains(self, role: str) -> bool:
        """Whether a component is trained in this step."""
        return role in self.groups and self.step_number >= getattr(self.config.frozen_until_step, role)

    def backward(self, loss: Tensor) -> None:
        if loss.requires_grad:  # not so where only the projector is trained, and a row has no picture
            self.scaler.scale(loss).backward()

    @property
    def trained(self) -> list[nn.Parameter]:
        """Of all components that are trained at some time."""
        return [parameter for parameters in self.groups.values() for parameter in parameters]

    def step(self, num_targets: Tensor | None = None) -> Tensor:
        """Update the weights from the gradients gathered since the last call; the gradient's norm before clipping.

        num_targets: of all processes, on the device; where it is 0 nothing was learnt, and nothing is updated.
        """
        trained = self.trained
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        if not gradients:
            self.advance()
            return torch.zeros_like(self.lost)
        nothing = torch.zeros_like(self.lost) if num_targets is None else (num_targets == 0).float()
        self.scaler.unscale_(self.adamw)
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(trained, self.config.max_grad_norm, norm)
        self._update((~norm.isfinite()).float() * (1 - nothing), nothing)
        self.adamw.zero_grad()
        self.advance()
        return norm

    def _update(self, lost: Tensor, nothing: Tensor) -> None:
        """AdamW's step, which its fused kernel leaves out where the update is ``lost``, or there is ``nothing``."""
        self.lost = self.lost + lost
        self.lost_in_a_row = torch.where(nothing > 0, self.lost_in_a_row, (self.lost_in_a_row + lost) * lost)
        self.adamw.found_inf = torch.maximum(lost, nothing)  # type: ignore[attr-defined]  # what a scaler sets, too
        self.adamw.step()
        if self.scaler.is_enabled():
            self.scaler.update()

    def advance(self) -> None:
        """Go on to the next step's learning rates, and to what is trained in it."""
        self.step_number += 1
        self._set_learning_rates()

    def _set_learning_rates(self) -> None:
        factor = schedule(self.step_number, self.total_steps, self.config)
        for group in self.adamw.param_groups:
            role = group["role"]
            group["lr"] = getattr(self.config.learning_rate, role) * factor
            for parameter in self.groups[role]:
                parameter.requires_grad_(self.trains(role))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """AdamW's tensors by the names of their parameters, and the numbers beside them."""
        tensors = {
            f"{self.names[parameter]}.{key}": value
            for parameter, values in self.adamw.state.items()
            for key, value in values.items()
        }
        lost = {"lost": float(self.lost), "lost_in_a_row": float(self.lost_in_a_row)}
        return tensors, {"step_number": self.step_number, "scaler": self.scaler.state_dict(), **lost}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        parameters = {name: parameter for parameter, name in self.names.items()}
        for name, tensor in tensors.items():
            of, _, key = name.rpartition(".")
            self.adamw.state[parameters[of]][key] = tensor.to(parameters[of].device)
        self.scaler.load_state_dict(facts["scaler"])
        self.lost, self.lost_in_a_row = (self.lost.new_tensor(facts[key]) for key in ("lost", "lost_in_a_row"))
        self.step_number = facts["step_number"]
        self._set_learning_rates()
