"""Which device and precision: bf16 where the hardware has it, fp16 with a scaler on older GPUs, fp32 on CPU."""

from contextlib import AbstractContextManager

import torch

from nanovlm.attention import varlen_obstacle
from nanovlm.components import LanguageDecoder
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
    """Autocast and gradient scaling for one device. Weights and optimizer state stay in fp32.

    ``note`` says what is used in the place of a ``choice`` that the hardware has not; else it is empty.
    """

    def __init__(self, choice: str, device: torch.device) -> None:
        self.name, self.note = _automatic(device) if choice == "auto" else choice, ""
        if choice == "bf16" and _automatic(device) == "fp16":
            self.name = "fp16"
            self.note = "training.precision=bf16: this GPU computes in fp16 only, which is used, with a gradient scaler"
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")

    @property
    def dtype(self) -> torch.dtype:
        """What matrices are multiplied in."""
        return DTYPES[self.name]

    def autocast(self) -> AbstractContextManager[object]:
        """The context for forward passes."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.name != "fp32")


def attention_note(decoder: LanguageDecoder, precision: Precision) -> str:
    """What is used in the place of varlen attention on a GPU that has not got it; else nothing."""
    obstacle = varlen_obstacle(precision.device, precision.dtype)
    if not decoder.varlen or not obstacle or precision.device.type != "cuda":
        return ""
    return f"attention: samples are grouped by length and padded, since flash attention is not to be had: {obstacle}"


def _automatic(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "fp32"
