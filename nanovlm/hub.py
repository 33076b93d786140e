"""From ``weights: <hub id> | <folder>`` to a folder on this machine: the one place that may download."""

import os
from pathlib import Path

from nanovlm.errors import ConfigError, named

CONFIG = ("config.json", "preprocessor_config.json", "processor_config.json")
WEIGHTS = (*CONFIG, "*.safetensors", "*.safetensors.index.json")
TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.jinja", "config.json", "*.model")
MODEL = (*WEIGHTS, *TOKENIZER)


class HubError(ConfigError):
    """A source that is neither a folder here nor to be had from the hub."""

    def __init__(self, source: str, option: str, reason: str, unreachable: bool = False) -> None:
        super().__init__(f"{option}: {source!r} is no folder here, and {reason}")
        self.source, self.option, self.reason = source, option, reason
        self.unreachable = unreachable  # the hub gave no answer at all, and will give none about anything else

    def at(self, where: str) -> ConfigError:
        """The whole message, once it is known where in the experiment the source stands."""
        override = f"{where}.{self.option}"
        kind = Unreachable if self.unreachable else ConfigError
        return kind(
            f"{override}: {self.source!r} is no folder here, and {self.reason}.\n"
            f"  Without network, point it at a folder: {override}=FOLDER"
        )


class Unreachable(ConfigError):
    """Without network: nothing else that the experiment names can be had either, unless it is here already."""


def local_folder(source: str) -> Path | None:
    """The folder that ``source`` names, if it is one."""
    folder = os.path.expanduser(source)
    return Path(folder) if os.path.isdir(folder) else None


def check_hub_id(source: str, option: str) -> None:
    """HubError if ``source``, which is no folder, is nothing that the hub could have either."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, only not marked so

    if os.path.isfile(os.path.expanduser(source)):
        raise HubError(source, option, "it is a file: name the folder that it is in")
    try:
        validate_repo_id(source)
    except HFValidationError:
        raise HubError(source, option, "it is no hub id either (owner/name)") from None


def fetch(source: str, files: tuple[str, ...], option: str = "weights") -> Path:
    """A folder with ``files`` (patterns) of ``source``, downloaded if it is a hub id; HubError if neither."""
    if folder := local_folder(source):
        return folder
    check_hub_id(source, option)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=list(files)))
    except Exception as error:  # of whichever HTTP library the installed version uses, too
        raise HubError(source, option, why(error), isinstance(error, LocalEntryNotFoundError)) from None


def why(error: Exception) -> str:
    """Why the hub did not give something: in our words where the first ones of the library's say little."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    if constants.HF_HUB_OFFLINE and isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return "it is not in the cache of the Hugging Face hub, and HF_HUB_OFFLINE is set"
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why it did not come to be a local entry
    if isinstance(error, GatedRepoError):
        return "on the Hugging Face hub its terms must be accepted first (then log in with `hf auth login`)"
    if isinstance(error, RepositoryNotFoundError):
        return "the Hugging Face hub has no public repository of this name (is it private? log in with `hf auth login`)"
    return f"the Hugging Face hub did not give it ({named(error)})"
