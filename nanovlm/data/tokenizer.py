"""Where a tokenizer comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from nanovlm.components import TextConfig
from nanovlm.data.image_format import markers
from nanovlm.errors import ConfigError
from nanovlm.hub import HubError


class Tokenizer(Protocol):
    """What the core uses of a Hugging Face tokenizer."""

    chat_template: str | dict[str, str] | None
    eos_token: str | None
    all_special_ids: list[int]
    added_tokens_decoder: dict[int, Any]

    def __call__(self, text: str, **options: Any) -> Any: ...
    def add_tokens(self, new_tokens: list[str], special_tokens: bool = False) -> int: ...
    def __len__(self) -> int: ...
    def decode(self, token_ids: list[int], **options: Any) -> str: ...
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]: ...
    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any: ...
    def save_pretrained(self, folder: str) -> Any: ...


def load_tokenizer(
    config: TextConfig, vocab_size: int, folder: Path | None = None, borrowed: bool = False
) -> Tokenizer:
    """A decoder's tokenizer with its markers; from a model ``folder`` if one is given, and it is not ``borrowed``."""
    if (folder is None or borrowed) and config.tokenizer_source == "bytes":
        tokenizer = byte_tokenizer()
    elif borrowed:
        tokenizer = _borrow_tokenizer(config, folder)
    else:
        tokenizer = _read_tokenizer(config, folder)
    added = markers(config)
    tokenizer.add_tokens(added, special_tokens=True)
    if len(tokenizer) > vocab_size:
        what = f"{len(tokenizer)} tokens" + (f" (with {', '.join(added)})" if added else "")
        raise ConfigError(f"the tokenizer has {what}, the decoder's embedding only vocab_size={vocab_size}: raise it")
    return tokenizer


def _borrow_tokenizer(config: TextConfig, folder: Path | None) -> Tokenizer:
    """For a model whose folder holds none, or that is asked by another one."""
    try:
        return _read_tokenizer(config, None)
    except HubError as error:
        raise ConfigError(
            f"the tokenizer of {folder} is to be {error.source!r}, which is no folder here, and {error.reason}.\n"
            "  Name a folder that holds it: --tokenizer FOLDER, or tokenizer=FOLDER in Python"
        ) from None


def _read_tokenizer(config: TextConfig, folder: Path | None) -> Tokenizer:
    from transformers import AutoTokenizer

    from nanovlm.hub import TOKENIZER, fetch
    from nanovlm.interop.exported import own_folder

    folder = folder or fetch(config.tokenizer_source, TOKENIZER, option="tokenizer" if config.tokenizer else "weights")
    folder = own_folder(folder)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder} holds no tokenizer that transformers can load: {error}") from None
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """Every byte of UTF-8 is a token, and one more ends the text: 257 in all."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    return tokenizer
