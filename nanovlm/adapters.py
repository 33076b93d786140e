"""LoRA: the decoder's own weights stay as they are, and small matrices beside its linear layers are trained.

Source: Hu et al. 2021, arXiv 2106.09685. The layers are those of the library peft.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import nn

from nanovlm.attention import Segments
from nanovlm.errors import ConfigError, unknown
from nanovlm.schema import Schema

if TYPE_CHECKING:
    from nanovlm.components import LanguageDecoder

ADAPTER = re.compile(r"\.lora_[AB]\.default\.")  # in the name of a parameter; `default` is what peft calls the first


class Lora(Schema):
    """An adapted layer computes W x + alpha / rank * B A x: W is frozen, and A and B are trained, from B = 0."""

    rank: Annotated[int, Field(ge=1)] = 8
    """The rows of A and the columns of B: for a layer, rank * (inputs + outputs) numbers are trained."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 8.0
    """What the adapters add is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of an adapter's inputs that is zeroed in training."""
    targets: list[str] = []
    """The adapted layers by their last names, such as `query`; by default every linear layer in the blocks."""


def add_lora(decoder: LanguageDecoder, lora: Lora) -> None:
    """Adapt linear layers in the decoder's blocks, and freeze all else. The decoder computes what it did before.

    Works on ``meta``, too. Raises ConfigError where peft is not installed, and where there is nothing to adapt.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:  # or a version of it that does not go with the installed transformers
        raise ConfigError(f'lora needs the library peft ({error}): pip install "nanovlm[lora]"') from None

    blocks = nn.ModuleList(decoder.blocks)  # peft searches and marks what it is given, so it is given no more than this
    layers = _targeted(blocks, lora.targets)
    if not next(blocks.parameters()).is_meta:
        _check_called(decoder, layers)
    decoder.requires_grad_(False)
    scale: Any = lora.alpha  # peft declares an int, and divides it
    inject_adapter_in_model(
        LoraConfig(r=lora.rank, lora_alpha=scale, lora_dropout=lora.dropout, target_modules=list(layers)), blocks
    )


def _targeted(blocks: nn.ModuleList, targets: list[str]) -> dict[str, nn.Linear]:
    """The layers to adapt by their full names; ConfigError where one of ``targets`` is the last name of none."""
    linear = {
        f"{i}.{name}": module
        for i, block in enumerate(blocks)
        for name, module in block.named_modules()
        if name and isinstance(module, nn.Linear)
    }
    if not linear:
        raise ConfigError("lora: no block has a linear layer (nn.Linear) to adapt: leave lora out, and train all of it")
    known = {_last(name) for name in linear}
    for target in targets:
        if target not in known:
            raise ConfigError(f"lora.targets: {unknown('linear layer', target, known)}")
    return {name: module for name, module in linear.items() if not targets or _last(name) in targets}


def _check_called(decoder: LanguageDecoder, layers: dict[str, nn.Linear]) -> None:
    """ConfigError for layers that no block calls: it reads their weights by itself (Mamba's dt_proj), and no adapter.

    Layers of one name count together, since of a mixture's experts a token calls a few only.
    """
    called: set[str] = set()

    def note(last: str) -> Callable[..., None]:
        return lambda *_: called.add(last)

    hooks = [layer.register_forward_pre_hook(note(_last(name))) for name, layer in layers.items()]
    ids = torch.zeros(2, dtype=torch.int64, device=next(decoder.parameters()).device)
    with torch.no_grad():
        decoder(decoder.embed(ids), Segments.of([len(ids)]).map(lambda tensor: tensor.to(ids.device)))
    for hook in hooks:
        hook.remove()
    if idle := sorted({_last(name) for name in layers} - called):
        others = f"name others, targets: [{', '.join(sorted(called))}]" if called else "name other targets"
        raise ConfigError(
            f"lora.targets: an adapter at {', '.join(idle)} would do nothing, since the decoder takes the weights "
            f"there without calling the layer; {others}"
        )


def merge_lora(decoder: LanguageDecoder) -> None:
    """Add what the adapters add to the weights beside them, W + alpha / rank * B A, and take the adapters out.

    The decoder computes what it did before, up to rounding, and is an ordinary one again; without adapters it stays.
    """
    if not adapters(decoder):
        return
    from peft.tuners.lora import Linear

    adapted = {name: module for name, module in decoder.named_modules() if isinstance(module, Linear)}
    for name, layer in adapted.items():
        parent, _, last = name.rpartition(".")
        linear: Any = layer.get_base_layer()
        with torch.no_grad():
            linear.weight += layer.get_delta_weight("default")
        setattr(decoder.get_submodule(parent), last, linear)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def adapters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that ``add_lora`` put in; none where it did not."""
    return [parameter for name, parameter in module.named_parameters() if is_adapter(name)]


def is_adapter(name: str) -> bool:
    """Whether this is the name of a parameter that ``add_lora`` put in."""
    return ADAPTER.search(name) is not None


def plain_name(name: str) -> str:
    """The name that a tensor has without an adapter around it: ``query.weight`` for ``query.base_layer.weight``."""
    return name.replace(".base_layer.", ".")
