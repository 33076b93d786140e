"""What a model folder holds beside the weights and the tokenizer, and how one is replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nanovlm.errors import CheckpointError, ConfigError
from nanovlm.experiment import Named
from nanovlm.files import whole_folder
from nanovlm.interop import upstream
from nanovlm.interop.exported import NAMES, own_folder, read_exported
from nanovlm.merging import ROLES
from nanovlm.weights import read_json, read_tensors

if TYPE_CHECKING:
    from nanovlm.blueprint import Blueprint

TEMPLATE = "template.jinja"  # a template that came from a file


def write_config(blueprint: Blueprint, template: str, folder: Path, kept: Mapping[str, Any] | None = None) -> None:
    """``config.json``: the components by name with all options, and the plugins that they came from.

    template: the text of the chat template, which is written beside it if it is the user's own.
    kept: the plugins by role, as another folder names them that the model was loaded from.
    """
    config: dict[str, Any] = {"nanovlm": version("nanovlm")}
    plugins = {}
    for part in blueprint.parts:
        config[part.where] = part.dump()
        plugins[part.where] = (kept or {}).get(part.where) or part.plugin.provenance()
    if config["language_decoder"]["template"] not in ("question_answer", "tokenizer"):
        (folder / TEMPLATE).write_text(template, encoding="utf-8")
        config["language_decoder"]["template"] = TEMPLATE
    (folder / "config.json").write_text(json.dumps(config | {"plugins": plugins}, indent=2) + "\n")


def kept_plugins(folder: Path | None) -> dict[str, Any]:
    """The plugins by role that a model folder names: those that the model was trained with."""
    if folder is None or not (folder / "config.json").is_file():
        return {}
    plugins = read_json(folder / "config.json").get("plugins")
    return plugins if isinstance(plugins, dict) else {}


def is_model(config: dict[str, Any]) -> bool:
    """Whether this ``config.json`` is a whole model's."""
    return "nanovlm" in config or upstream.is_upstream(config)


def read_config(folder: Path) -> dict[str, Named]:
    """The components that a model folder's ``config.json`` names, by role; the folder may be nanoVLM's."""
    folder = own_folder(folder)
    config = read_json(folder / "config.json")
    if upstream.is_upstream(config):
        return upstream.components(config, str(folder))
    if missing := [role for role in ROLES if not isinstance(config.get(role), dict)]:
        raise CheckpointError(f"{folder / 'config.json'} names no {', '.join(missing)}: it was not written by nanovlm")
    decoder: dict[str, Any] = config["language_decoder"]  # type: ignore[assignment]
    if decoder.get("template") == TEMPLATE:
        decoder["template"] = str(folder / TEMPLATE)
    return {role: Named.model_validate(config[role]) for role in ROLES}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """A model folder's tensors under our names."""
    folder = own_folder(folder)
    if (folder / NAMES).is_file():
        return read_exported(folder)
    config, tensors = read_json(folder / "config.json"), read_tensors(folder)
    return upstream.translated(tensors, config, str(folder)) if upstream.is_upstream(config) else tensors


def has_tokenizer(folder: Path) -> bool:
    """Whether a model folder holds the tokenizer, as ours do; nanoVLM's only name one."""
    return not upstream.is_upstream(read_json(folder / "config.json"))


def caution(folder: Path) -> str:
    """What is done otherwise here than where the model comes from, in words; empty where nothing is."""
    config = read_json(folder / "config.json")
    return upstream.caution(config, str(folder)) if upstream.is_upstream(config) else ""


@contextmanager
def replaced(folder: str | Path) -> Iterator[Path]:
    """A new folder to write a model into, which then takes the place of ``folder``: whole, or not at all.

    Raises ConfigError, before anything is written, where something else than a model would be lost.
    """
    target = Path(folder).resolve()
    if target.exists() and not _is_model_or_empty(target):
        raise ConfigError(f"{str(folder)!r} holds something else than a model, which would be lost: name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(target) as part:
        yield part


def _is_model_or_empty(folder: Path) -> bool:
    if not folder.is_dir() or not any(folder.iterdir()):
        return folder.is_dir()
    try:
        return "nanovlm" in read_json(own_folder(folder) / "config.json")
    except CheckpointError:
        return False
