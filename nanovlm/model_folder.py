"""What a model folder holds beside the weights and the tokenizer, and how one is replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nanovlm.blueprint import ROLES, Blueprint
from nanovlm.errors import CheckpointError, ConfigError
from nanovlm.experiment import Named
from nanovlm.files import whole_folder
from nanovlm.weights import read_json

TEMPLATE = "template.jinja"  # a template that came from a file


def write_config(blueprint: Blueprint, template: str, folder: Path) -> None:
    """``config.json``: the components by name with all options, and the plugins that they came from.

    template: the text of the chat template, which is written beside it if it is the user's own.
    """
    config: dict[str, Any] = {"nanovlm": version("nanovlm")}
    plugins = {}
    for part in blueprint.parts:
        config[part.where] = part.dump()
        plugins[part.where] = part.plugin.provenance()
    if config["language_decoder"]["template"] not in ("question_answer", "tokenizer"):
        (folder / TEMPLATE).write_text(template, encoding="utf-8")
        config["language_decoder"]["template"] = TEMPLATE
    (folder / "config.json").write_text(json.dumps(config | {"plugins": plugins}, indent=2) + "\n")


def read_config(folder: Path) -> dict[str, Named]:
    """The components that a model folder's ``config.json`` names, by role."""
    config = read_json(folder / "config.json")
    if missing := [role for role in ROLES if not isinstance(config.get(role), dict)]:
        raise CheckpointError(f"{folder / 'config.json'} names no {', '.join(missing)}: it was not written by nanovlm")
    decoder: dict[str, Any] = config["language_decoder"]  # type: ignore[assignment]
    if decoder.get("template") == TEMPLATE:
        decoder["template"] = str(folder / TEMPLATE)
    return {role: Named.model_validate(config[role]) for role in ROLES}


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
        return "nanovlm" in read_json(folder / "config.json")
    except CheckpointError:
        return False
