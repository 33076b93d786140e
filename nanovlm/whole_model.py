"""Fine-tuning: a component whose ``weights`` name a whole model, ours or nanoVLM's, starts as its part of that one.

An encoder and a decoder have an option ``weights`` themselves. A projector needs none for this: beside its own options
it may have ``weights``, and nothing but a whole model can be named there.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from nanovlm.adapters import is_adapter
from nanovlm.components import ComponentConfig, parse
from nanovlm.errors import CheckpointError, ConfigError, PluginError
from nanovlm.hub import CONFIG, WEIGHTS, HubError, fetch, local_folder
from nanovlm.interop.exported import own_folder
from nanovlm.merging import ROLES
from nanovlm.model_folder import has_tokenizer, is_model, read_config, read_weights
from nanovlm.recorded_plugins import of_model
from nanovlm.registry import Registry
from nanovlm.weights import load_weights, read_json

if TYPE_CHECKING:
    from nanovlm.blueprint import Part

CHOSEN = ("tokenizer", "template")  # the user's, whatever the model has


def whole_model(part: Part) -> Path | None:
    """The folder of the whole model that a component's ``weights`` name, if they do; of it only configs are there.

    A dataset's ``weights`` are something else.
    """
    if part.where not in ROLES or part.weights == "random" or part.weights in part.config.known_sizes:
        return None
    try:
        folder = own_folder(fetch(part.weights, CONFIG))
        return folder if is_model(read_json(folder / "config.json")) else None
    except (HubError, CheckpointError):
        return None  # the component itself says why


def resolved(part: Part) -> ComponentConfig:
    """A component's options with all that its ``weights`` decide: a checkpoint's config, or a whole model's.

    Raises ConfigError where the whole model has another component there, or other options than were asked for.
    """
    config: ComponentConfig = part.config
    if folder := whole_model(part):
        config = config.fill_in(options_in(folder, part), part.weights)
        if words := of_model(folder, part.weights).remark(part.where, part.name, part.plugin):
            warnings.warn(words, stacklevel=2)
        return config
    if part.start:
        raise ConfigError(
            f"weights={part.start!r} is no whole model (a folder or a hub id), and {part.name} has no other weights"
        )
    return config.resolved()


def options_in(folder: Path, part: Part) -> dict[str, Any]:
    """What a whole model's component was built with, less what is the user's to choose."""
    choice = read_config(folder)[part.where]
    if not _same(choice.name, part.name):
        raise ConfigError(
            f"weights={part.weights!r} is a whole model, and its {part.where} is {choice.name}, not {part.name}: "
            f"name {choice.name} here, or other weights"
        )
    options = {key: value for key, value in choice.options.items() if key != "weights"}
    own = parse(part.cls.Config, options, where=f"{folder / 'config.json'}: {part.where}")  # type: ignore[attr-defined]
    found = {key: getattr(own, key) for key in type(own).model_fields if key != "weights"}
    if has_tokenizer(folder):
        found.pop("tokenizer", None)  # it is where the weights are
    if not found.get("lora"):
        found.pop("lora", None)  # what is trained beside the weights now is another matter
    return {key: value for key, value in found.items() if not (key in CHOSEN and key in part.config.model_fields_set)}


def refuse_missing(registry: Registry, role: str, name: str, weights: Any) -> None:
    """PluginError if a component that is not here is that of the whole model which its ``weights`` name.

    Only of a folder, as nothing is asked of the hub about what may be a misspelt name.
    """
    folder = local_folder(weights) if isinstance(weights, str) else None
    if folder is None or not is_model(_config(folder := own_folder(folder))):
        return
    record = of_model(folder, weights)
    known = record.knows(role) and not record.is_here(registry, role)
    if known and _same(read_config(folder)[role].name, name):
        raise PluginError(record.missing(registry, role, name))


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    return read_json(file) if file.is_file() else {}


def _same(name: str, other: str) -> bool:
    """Whether it is one component, wherever each says that it comes from."""
    return name.rpartition(":")[2] == other.rpartition(":")[2]


def load_part(part: Part, component: nn.Module) -> None:
    """Load a component's part of the whole model that its ``weights`` name, with its adapters (LoRA) if it has any."""
    prefix = f"{part.where}."
    tensors = read_weights(fetch(part.weights, WEIGHTS))
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    load_weights(component, own, part.weights, adapted=any(map(is_adapter, own)))
