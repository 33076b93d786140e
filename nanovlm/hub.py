"""From ``weights: <hub id> | <folder>`` to a folder on this machine: the one place that may download."""

from pathlib import Path

from nanovlm.errors import ConfigError

CONFIG = ("config.json", "preprocessor_config.json")
WEIGHTS = (*CONFIG, "*.safetensors", "*.safetensors.index.json")
TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.jinja", "config.json", "*.model")
MODEL = (*WEIGHTS, *TOKENIZER)


class HubError(ConfigError):
    """A source that is neither a folder here nor to be had from the hub."""

    def __init__(self, source: str, option: str, reason: str) -> None:
        super().__init__(f"{option}: {source!r} is no folder here, and {reason}")
        self.source, self.option, self.reason = source, option, reason

    def at(self, where: str) -> str:
        """The whole message, once it is known where in the experiment the source stands."""
        override = f"{where}.{self.option}"
        return (
            f"{override}: {self.source!r} is no folder here, and {self.reason}.\n"
            f"  Without network, point it at a folder: {override}=FOLDER"
        )


def local_folder(source: str) -> Path | None:
    """The folder that ``source`` names, if it is one."""
    folder = Path(source).expanduser()
    return folder if folder.is_dir() else None


def fetch(source: str, files: tuple[str, ...], option: str = "weights") -> Path:
    """A folder with ``files`` (patterns) of ``source``, downloaded if it is a hub id; HubError if neither."""
    if folder := local_folder(source):
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise HubError(source, option, "a path with this form is no hub id either (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(source, allow_patterns=list(files)))
    except HFValidationError:
        raise HubError(source, option, "it is no hub id either (owner/name)") from None
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        summary = next(iter(str(error).strip().splitlines()), "")[:200]
        raise HubError(
            source, option, f"the Hugging Face hub did not give it ({type(error).__name__}: {summary})"
        ) from None
