"""From ``weights: <hub id> | <folder>`` to a folder on this machine: the one place that may download."""

import os
from pathlib import Path
from typing import Any

from nanovlm.errors import ConfigError, named

EXPORTED = "nanovlm/*"  # our own config and tokenizer in a model exported to transformers
CONFIG = ("config.json", "preprocessor_config.json", "processor_config.json", EXPORTED)
WEIGHTS = (*CONFIG, "*.safetensors", "*.safetensors.index.json")
TOKENIZER = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "*.jinja",
    "*.model",
    "config.json",
    EXPORTED,
)
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


def why_not_taken(error: Exception, repo: str) -> str:
    """Why the hub did not take what was sent to a repository: a whole sentence, and where there is one the remedy."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the library says only which file it was at
    kinds = {kind.__name__ for kind in type(error).__mro__}  # versions of the library differ in their HTTP library
    owner = repo.partition("/")[0]
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hugging Face hub was not asked: unset it to upload"
    if "TimeoutException" in kinds:
        return "the Hugging Face hub did not answer in time: try again later"
    if "TransportError" in kinds:
        return f"the Hugging Face hub cannot be reached ({named(error)}): is there a network?"
    answers = {
        401: "the Hugging Face hub does not know who asks: log in with `hf auth login`, by a token that may write",
        403: f"the Hugging Face hub does not let this token write to {owner}: use one with write access, of {owner} "
        "itself or of one of its members",
        404: f"the Hugging Face hub has no user and no organization {owner}, or no repository of this name any more",
    }
    status: Any = getattr(getattr(error, "response", None), "status_code", None)
    return answers.get(status, f"the Hugging Face hub did not take it ({named(error)})")
