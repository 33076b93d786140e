"""Whether a folder for transformers answers as the model that it was made from, asked of transformers itself."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nanovlm.data.conversation import IMAGE_MARK, Tokens
from nanovlm.data.images import to_tensor
from nanovlm.data.packing import Example, pack_row
from nanovlm.errors import CheckpointError

if TYPE_CHECKING:
    from nanovlm.model import VisionLanguageModel

TOLERANCE = 1e-3  # of the largest logit; rounding in another order gives about 1e-6 of it
QUESTION = "What is in the picture?"
RATIOS = ((1, 1), (4, 3), (3, 4), (4, 1))  # width to height of the pictures that are tried


@torch.no_grad()
def largest_difference(model: VisionLanguageModel, exported: Any, processor: Any) -> float:
    """Between the logits over our vocabulary, for a random picture amid random tokens.

    Raises CheckpointError where it is more than rounding: then transformers computes something else.
    """
    generator = torch.Generator().manual_seed(0)
    size = model.vision_encoder.image.size
    vocab_size = model.blueprint.language_decoder.config.vocab_size
    pixels = torch.randint(256, (1, 3, size, size), generator=generator, dtype=torch.uint8)
    ids = torch.randint(vocab_size, (16,), generator=generator)
    ids[ids == processor.image_token_id] = 0  # which transformers would take for a picture's place
    example = Example(Tokens(ids.tolist(), [True] * len(ids), [4]), pixels)
    ours = our_logits(model, example)
    theirs = their_logits(exported, processor, example)[:, :vocab_size]
    difference, scale = (ours - theirs).abs().max().item(), max(1.0, ours.abs().max().item())
    if not difference <= TOLERANCE * scale:
        raise CheckpointError(
            f"transformers' logits differ from ours by up to {difference:.3g} (ours reach {scale:.3g}): the installed "
            "version computes something else, so the model was not exported"
        )
    return difference


def our_logits(model: VisionLanguageModel, example: Example) -> Tensor:
    """(T, V) for one conversation with its pictures."""
    row = pack_row([example], model.num_image_tokens)
    return model.language_decoder.logits(model.hidden(row))[: row.segments.cu_seqlens[1]]


def their_logits(exported: Any, processor: Any, example: Example) -> Tensor:
    """(T, more than V) of transformers' model for the same ids and pixels."""
    images = processor.image_processor
    mean, std = (torch.tensor(values)[:, None, None] for values in (images.image_mean, images.image_std))
    ids = with_image_ids(example.tokens, processor.image_seq_len, processor.image_token_id)
    pixels = (example.pixels / 255 - mean) / std  # (B, 3, H, W)
    logits: Tensor = exported(input_ids=torch.tensor([ids]), pixel_values=pixels[None]).logits[0]
    return logits


def with_image_ids(tokens: Tokens, num_image_tokens: int, image_id: int) -> list[int]:
    """A conversation's ids with the places of its pictures, each so many times ``image_id``."""
    ids = list(tokens.ids)
    for at in reversed(tokens.image_at):
        ids[at:at] = [image_id] * num_image_tokens
    return ids


def differences(model: VisionLanguageModel, processor: Any) -> list[str]:
    """How questions and pictures reach the model otherwise through transformers' processor; empty if they do not."""
    found = [line for images in (0, 1, 2) if (line := prompt_difference(model, processor, images))][:1]
    found += [line for ratio in RATIOS if (line := pixel_difference(model, processor, *ratio))]
    return found + padding_taken(processor)


def prompt_difference(model: VisionLanguageModel, processor: Any, images: int) -> str:
    """How a question about so many pictures differs in its tokens; empty if it does not."""
    picture = Image.new("RGB", (8, 8), "red")
    content = [{"type": "image", "image": picture}] * images + [{"type": "text", "text": QUESTION}]
    theirs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    theirs = theirs[0] if theirs and isinstance(theirs[0], list) else theirs
    ours = with_image_ids(model.text.prompt(QUESTION, images), model.num_image_tokens, processor.image_token_id)
    if theirs == ours:
        return ""
    pictures = ("no picture", "one picture", "two pictures")[images]
    return (
        f"a question about {pictures} becomes {len(theirs)} tokens, and in nanovlm {len(ours)}:\n"
        f"  transformers: {shown(theirs, processor)}\n  nanovlm: {shown(ours, processor)}"
    )


def shown(ids: list[int], processor: Any) -> str:
    """Tokens in words, a run of image tokens as one."""
    words = []
    for token, run in groupby(processor.tokenizer.convert_ids_to_tokens(ids)):
        count = len(list(run))
        words += [f"{token} x {count}"] if token == IMAGE_MARK else [token] * count
    return " ".join(words)


def pixel_difference(model: VisionLanguageModel, processor: Any, width: int, height: int) -> str:
    """How far the pixels of a picture of this shape are off, in levels of 255; empty if they are the same."""
    spec = model.vision_encoder.image
    levels = np.random.default_rng(0).integers(0, 256, (height * 4, width * 4, 3), dtype=np.uint8)
    size = (spec.size * width * 2 // min(width, height), spec.size * height * 2 // min(width, height))
    picture = Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)
    images = processor.image_processor
    pixels = images(images=[[picture]], return_tensors="pt")["pixel_values"][0, 0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (images.image_mean, images.image_std))
    off = round(((pixels * std + mean) * 255 - to_tensor(picture, spec)).abs().max().item())
    return f"a picture of {width}:{height} is up to {off}/255 off" if off else ""


def padding_taken(processor: Any) -> list[str]:
    """The picture that transformers leaves out because its normalised pixels are all 0, as those of padding."""
    levels = [mean * 255 for mean in processor.image_processor.image_mean]
    if not all(level.is_integer() for level in levels):
        return []
    colour = ", ".join(f"{level:.0f}" for level in levels)
    return [f"a picture that is all of the colour ({colour}) is taken for padding, and refused"]


def load_exported(folder: Path) -> tuple[Any, Any]:
    """Transformers' model in fp32 and its processor, as anybody loads them."""
    from transformers import AutoProcessor, Idefics3ForConditionalGeneration

    from nanovlm.weights import quiet

    with quiet():
        model: Any = Idefics3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        return model.eval(), AutoProcessor.from_pretrained(folder)
