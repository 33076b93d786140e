"""Tiny checkpoints as nanoVLM writes them, with random weights and what it computed from them."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanovlm import VisionLanguageModel
from nanovlm.data.conversation import Tokens
from nanovlm.data.packing import Example, PackedRow, pack_row
from nanovlm.data.tokenizer import byte_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
MAIN, V01 = FIXTURES / "nanovlm-main-tiny", FIXTURES / "nanovlm-v0.1-tiny"
IMAGE_ID = 301  # where the record of the current format has an image token


def recorded(folder: Path) -> tuple[list[list[int]], Tensor, Tensor]:
    """Token ids, pictures (2, 3, 32, 32) in [0, 1] and logits (2, T, V)."""
    content = load_file(folder / "expected.safetensors")
    return content["input_ids"].tolist(), content["images"], content["logits"]


def row_of(model: VisionLanguageModel, folder: Path) -> PackedRow:
    """What the record was made of: v0.1 puts the picture first, the current format where its tokens stand."""
    examples = []
    for ids, image in zip(*recorded(folder)[:2], strict=True):
        at = ids.index(IMAGE_ID) if folder == MAIN else 0
        text = [token for token in ids if folder != MAIN or token != IMAGE_ID]
        examples.append(Example(Tokens(text, [False] * len(text), [at]), 255 * image[None]))
    return pack_row(examples, model.num_image_tokens)


@torch.no_grad()
def logits(model: VisionLanguageModel, folder: Path) -> Tensor:
    """(2, T, V)."""
    shape = recorded(folder)[2].shape
    return model.language_decoder.logits(model.hidden(row_of(model, folder))).view(shape)


def copied(source: Path, folder: Path, tensors: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    """A copy of a checkpoint with other tensors, and with changes to its ``config.json``; None takes a key out."""
    folder.mkdir()
    config = json.loads((source / "config.json").read_text()) | changes
    content = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content))
    if tensors is None:
        shutil.copy(source / "model.safetensors", folder)
    else:
        save_file(tensors, folder / "model.safetensors")
    return folder


def write_tokenizer(folder: Path, size: int = 300) -> Path:
    """Bytes, the marks of a chat, and tokens that are never used, up to ``size``."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens([f"<unused {i}>" for i in range(size - len(tokenizer))])
    tokenizer.save_pretrained(str(folder))
    return folder
