"""Which device and precision: bf16 where the hardware has it, fp16 with a scaler on older GPUs, fp32 on CPU."""

from contextlib import AbstractContextManager

import torch

from nanovlm.errors import ConfigError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choose_device(choice: str) -> torch.device:
    """``auto`` is CUDA, then Apple's MPS, then the CPU; ConfigError for one that is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if choice == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[choice]:
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise ConfigError(f"device={choice!r}: torch {torch.__version__} sees none here; use auto, or one of {there}")
    return torch.device(choice)


class Precision:
    """Autocast and gradient scaling for one device. Weights and optimizer state stay in fp32."""

    def __init__(self, choice: str, device: torch.device) -> None:
        self.name = _automatic(device) if choice == "auto" else choice
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")

    def autocast(self) -> AbstractContextManager[object]:
        """The context for forward passes."""
        return torch.autocast(self.device.type, DTYPES[self.name], enabled=self.name != "fp32")


def _automatic(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "fp32"
