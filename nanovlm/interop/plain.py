"""A trained model as a plain one: adapters merged into the weights beside them, rounded to what it is stored in."""

from dataclasses import replace

import torch

from nanovlm.adapters import merge_lora
from nanovlm.errors import ConfigError
from nanovlm.model import VisionLanguageModel


def merge(model: VisionLanguageModel) -> None:
    """Merge the decoder's adapters, if it has any, and take them out of its options, in place."""
    merge_lora(model.language_decoder)
    part = model.blueprint.language_decoder
    if getattr(part.config, "lora", None) is not None:
        config = part.config.model_copy(update={"lora": None})
        model.blueprint = replace(model.blueprint, language_decoder=replace(part, config=config))


@torch.no_grad()
def round_to(model: VisionLanguageModel, dtype: torch.dtype) -> None:
    """Round all weights to what ``dtype`` can hold, in place; they stay in fp32. ConfigError where one is too large."""
    largest = torch.finfo(dtype).max
    weights = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    for name, tensor in weights.items():
        if (highest := tensor.abs().max().item()) > largest:
            raise ConfigError(
                f"--dtype: {name} holds {highest:.3g}, and {str(dtype).removeprefix('torch.')} at most {largest:g}: "
                "use bf16, which reaches as far as fp32"
            )
    for tensor in weights.values():
        tensor.copy_(tensor.to(dtype))
