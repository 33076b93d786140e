"""Small models to export, and what transformers makes of an exported folder: ``from exporting import ...``."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tiny import tiny_model
from versions import older

from nanovlm import VisionLanguageModel, load_plugins
from nanovlm.data.conversation import Tokens
from nanovlm.data.packing import Example, pack_row
from nanovlm.interop.export import Exported, export_transformers

VOCAB = 257  # of the byte tokenizer
IDEFICS3 = ("language_decoder.image_format=idefics3", f"language_decoder.vocab_size={VOCAB + 2}")
LORA = "language_decoder.lora={rank: 3, alpha: 5}"
LLAMA3 = (
    "language_decoder.rope_scaling={factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, "
    "original_max_position_embeddings: 16}"
)


def borrowed(more: str = "tie_word_embeddings: true", lora: str = "null") -> str:
    """The library's own Llama, of the same sizes."""
    sizes = "hidden_size: 24, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4, vocab_size: 257"
    architecture = f"{{model_type: llama, {sizes}, num_key_value_heads: 2, max_position_embeddings: 256, {more}}}"
    return f"language_decoder={{name: hf_decoder, architecture: {architecture}, lora: {lora}}}"


def stirred(*overrides: str, seed: int = 0) -> VisionLanguageModel:
    """A tiny model in which every tensor matters: no norm is 1, no bias is 0, and no adapter does nothing."""
    model = tiny_model(*overrides, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.15
    return model


def export(model: VisionLanguageModel, folder: Path, dtype: str = "fp32") -> Exported:
    return export_transformers(model, folder, load_plugins(), dtype)


def beyond_rounding(exported: Exported) -> list[str]:
    """What differs; before 5.24 transformers may round pixels otherwise, which is not counted."""
    rounds = older("transformers", than="5.24")
    return [line for line in exported.differs if not (rounds and line.endswith("up to 1/255 off"))]


class Loaded(NamedTuple):
    """What anybody without nanovlm loads."""

    model: Any
    processor: Any


def load(folder: Path) -> Loaded:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return Loaded(model, AutoProcessor.from_pretrained(folder))


def conversations(model: VisionLanguageModel, vocab_size: int) -> list[Example]:
    """Random ids and pixels: a picture at the beginning, two within the text, none."""
    generator = torch.Generator().manual_seed(7)
    size = model.vision_encoder.image.size
    examples = []
    for length, places in ((9, [0]), (14, [3, 11]), (6, [])):
        ids = torch.randint(vocab_size, (length,), generator=generator).tolist()
        pixels = torch.randint(256, (len(places), 3, size, size), generator=generator, dtype=torch.uint8)
        examples.append(Example(Tokens(ids, [True] * length, places), pixels))
    return examples


@torch.no_grad()
def our_logits(model: VisionLanguageModel, examples: list[Example]) -> list[torch.Tensor]:
    row = pack_row(examples, model.num_image_tokens)
    logits = model.language_decoder.logits(model.hidden(row))
    bounds = row.segments.cu_seqlens.tolist()
    return [logits[bounds[i] : bounds[i + 1]] for i in range(len(examples))]


@torch.no_grad()
def their_logits(loaded: Loaded, examples: list[Example], mean: float = 0.5, std: float = 0.5) -> list[torch.Tensor]:
    """By the definition: ids with image tokens in the pictures' places, and normalised pixels."""
    found = []
    for example in examples:
        ids: list[int] = []
        for i, token in enumerate(example.tokens.ids):
            image_tokens = [loaded.model.config.image_token_id] * loaded.processor.image_seq_len
            ids += image_tokens * example.tokens.image_at.count(i) + [token]
        pixels = ((example.pixels.float() / 255 - mean) / std)[None] if len(example.pixels) else None
        found.append(loaded.model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0])
    return found


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def their_answer(loaded: Loaded, question: str, images: list[Any], max_new_tokens: int = 12, **options: Any) -> str:
    content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": question}]
    inputs = loaded.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    ids = loaded.model.generate(**inputs, max_new_tokens=max_new_tokens, **options)
    return loaded.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()
