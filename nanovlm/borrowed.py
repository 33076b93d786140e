"""Models borrowed from another library: what all plugins that wrap one share, and how transformers builds one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nanovlm.errors import ConfigError, summary, unknown
from nanovlm.hub import CONFIG, fetch
from nanovlm.weights import read_checkpoint_config

# Of a checkpoint's config: code (an attention kernel of the hub, say), precision, and how it came about.
NOISE = ("auto_map", "attn_implementation", "architectures", "dtype", "torch_dtype", "transformers_version")


def is_noise(key: str) -> bool:
    return key in NOISE or key.startswith("_")


def read_architecture(weights: str, tower: str) -> tuple[dict[str, Any], Path]:
    """What a checkpoint's ``config.json`` says of the model, and the folder that it is in.

    Of several towers the one under the key ``tower`` (``vision_config``, ``text_config``) counts.
    """
    folder = fetch(weights, CONFIG)
    whole = read_checkpoint_config(folder)
    architecture = {key: value for key, value in whole.get(tower, whole).items() if not is_noise(key)}
    kind = tower.removesuffix("_config")
    architecture.setdefault("model_type", f"{whole.get('model_type', '')}_{kind}_model")
    return architecture, folder


def check_architecture(given: dict[str, Any], found: dict[str, Any], weights: str) -> None:
    """ConfigError where the ``architecture`` that the user gave contradicts the checkpoint's."""
    if odd := [f"{key}={value!r}" for key, value in given.items() if key not in found or found[key] != value]:
        raise ConfigError(
            f"architecture: {', '.join(odd)}, the checkpoint {weights!r} says otherwise: "
            "leave the option out, or use weights: random"
        )


def transformers_config(architecture: dict[str, Any], known: Callable[[], Iterable[str]]) -> Any:
    """The library's own configuration; a ConfigError suggests ``known`` for a ``model_type`` that it has not."""
    from transformers import CONFIG_MAPPING

    kind = str(architecture.get("model_type", ""))
    if kind not in CONFIG_MAPPING:
        raise ConfigError(f"architecture: {unknown('model_type', kind, known())}")
    if odd := [key for key in architecture if is_noise(key)]:
        raise ConfigError(f"architecture: {', '.join(odd)} is not about the architecture: leave it out")
    try:
        return CONFIG_MAPPING[kind](**{key: plain(value) for key, value in architecture.items() if key != "model_type"})
    except Exception as error:  # whatever the code of an architecture stumbles over
        raise ConfigError(f"architecture: transformers cannot build this {kind}: {summary(error)}") from None


def check_keys(given: dict[str, Any], config: Any, where: str = "architecture") -> None:
    """ConfigError for a key that a configuration keeps without knowing it: transformers refuses none.

    given: what ``config`` was made from. What a checkpoint says besides is its own affair, and is not checked.
    """
    from transformers import PreTrainedConfig

    try:
        usual = type(config)()
    except Exception:  # not every kind has defaults that go together
        usual = PreTrainedConfig()
    declared = {*inspect.signature(type(config)).parameters, *vars(usual), *config.attribute_map}
    known = sorted(key for key in declared if not is_noise(key) and key != "kwargs")
    for key, value in given.items():
        inner = vars(config).get(key)
        if key in vars(config) and key not in declared and not hasattr(type(config), key):
            raise ConfigError(f"{where}: {unknown('option', key, known)}")
        if isinstance(value, dict) and isinstance(inner, PreTrainedConfig):
            check_keys(value, inner, f"{where}.{key}")


def plain(value: Any) -> Any:
    """Undo how transformers writes what JSON has not: ``{"__float__": "Infinity"}``."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        special = value.keys() == {"__float__"}
        return float(value["__float__"]) if special else {key: plain(item) for key, item in value.items()}
    return value


def transformers_model(auto: Any, config: Any) -> Any:
    """A model of transformers with random weights; ``auto`` is the library's class for the task (``AutoModel``, ...).

    Never with code from a checkpoint, and always in fp32: what lower precision there is, the trainer decides.
    """
    try:
        return auto.from_config(config, trust_remote_code=False, dtype=torch.float32)
    except Exception as error:  # whatever the code of an architecture stumbles over
        kind = config.model_type
        raise ConfigError(f"architecture: transformers cannot build this {kind}: {summary(error)}") from None


def layers(model: nn.Module) -> nn.ModuleList | nn.Sequential:
    """Of a model's lists of modules, the one with most of the parameters."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    return max(lists, key=lambda modules: sum(parameter.numel() for parameter in modules.parameters()))
