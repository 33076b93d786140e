"""Batched greedy decoding with a KV cache: prompts of any length are packed like training samples."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nanovlm.components import ImageSpec
from nanovlm.data.conversation import TextFormat
from nanovlm.data.images import stack_images
from nanovlm.data.packing import Example, PackedRow, pack_row
from nanovlm.errors import DataError

if TYPE_CHECKING:
    from nanovlm.model import VisionLanguageModel


@dataclass(frozen=True)
class Prompt:
    """What the model is asked, and the pictures it is asked about."""

    user: str
    images: list[Any] = field(default_factory=list)

    def example(self, text: TextFormat, image: ImageSpec) -> Example:
        """Raises SkipSample for a picture that cannot be read."""
        return Example(text.prompt(self.user, len(self.images)), stack_images(self.images, image))


def num_tokens(model: VisionLanguageModel, example: Example) -> int:
    """Positions that a prompt takes in the decoder, its image tokens included."""
    return len(example.tokens.ids) + model.num_image_tokens * len(example.pixels)


def generate(model: VisionLanguageModel, examples: Sequence[Example], max_new_tokens: int) -> list[str]:
    """One answer for each prompt (see ``Prompt.example``). Raises DataError for one that is too long."""
    if not examples:
        return []
    if max_new_tokens < 1:
        raise DataError(f"max_new_tokens={max_new_tokens}: an answer takes at least one token")
    ids = generate_ids(model, pack_row(examples, model.num_image_tokens), max_new_tokens)
    return [model.text.decode(answer) for answer in ids]


@torch.inference_mode()
def generate_ids(
    model: VisionLanguageModel, row: PackedRow, max_new_tokens: int, stop_ids: Collection[int] | None = None
) -> list[list[int]]:
    """The likeliest continuation of each of a row's samples, until all have stopped (past a stop ids mean nothing).

    By default the stop ids are the text format's; without any, the tokenizer is not needed.
    """
    decoder, row = model.language_decoder, row.to(model.device)
    longest = int(row.segments.positions.max()) + 1 + max_new_tokens
    if longest > decoder.max_positions:
        raise DataError(
            f"prompt and answer take up to {longest} tokens, the decoder at most {decoder.max_positions}; "
            "ask less, or lower max_new_tokens"
        )
    stop_ids = model.text.stop_ids if stop_ids is None else stop_ids
    stops = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=model.device)
    stopped = torch.zeros(row.num_samples, dtype=torch.bool, device=model.device)
    generated = []
    with evaluating(model):
        cache = decoder.new_cache(row.num_samples, longest)
        hidden = model.hidden(row, cache)[row.segments.last]  # (S, D)
        for _ in range(max_new_tokens):
            generated.append(decoder.logits(hidden).argmax(dim=-1))  # (S,)
            stopped |= torch.isin(generated[-1], stops)
            if len(generated) == max_new_tokens or stopped.all():
                break
            hidden = decoder(decoder.embed(generated[-1]), cache.next(), cache)
    answers: list[list[int]] = torch.stack(generated, dim=1).tolist()
    return answers


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block the model is in eval mode; after it, as before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
