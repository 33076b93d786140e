"""Samples laid end to end in rows: a batch is packed, never padded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nanovlm.attention import Segments
from nanovlm.data.conversation import Tokens
from nanovlm.data.filling import Filling

IGNORED = -100  # the target of a position that teaches nothing, as in torch's cross entropy


@dataclass(frozen=True)
class Example:
    """A sample ready to be packed: tokens, pictures (pixels (n, 3, H, W) uint8), where it comes from, and its id."""

    tokens: Tokens
    pixels: Tensor
    origin: str = ""
    id: str = ""


@dataclass(frozen=True)
class PackedRow:
    """S samples end to end.

    token_ids (T,) int64; where image tokens stand the id is 0 and means nothing
    targets (T,) int64: the token after each position, or -100 where nothing is to be learnt
    pixels (B, 3, H, W) uint8
    image_slots (B*M,) int64: the positions that the image tokens take, in order
    target_slots (number of targets,) int64: the positions that have a target
    segments: where each sample begins and ends
    num_samples, num_tokens, num_images: without filling, with which T and B can be more (see filling.py)
    num_pairs: of two tokens of one sample, for each sample of L tokens L * L
    origins, ids: where each sample comes from, in words, and its id; empty where that is not known
    """

    token_ids: Tensor
    targets: Tensor
    pixels: Tensor
    image_slots: Tensor
    target_slots: Tensor
    segments: Segments
    num_samples: int
    num_tokens: int
    num_images: int
    num_pairs: int
    origins: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()

    @property
    def num_targets(self) -> int:
        return len(self.target_slots)

    def map(self, move: Callable[[Tensor], Tensor]) -> PackedRow:
        """The same row with ``move`` applied to every tensor."""
        return replace(
            self,
            token_ids=move(self.token_ids),
            targets=move(self.targets),
            pixels=move(self.pixels),
            image_slots=move(self.image_slots),
            target_slots=move(self.target_slots),
            segments=self.segments.map(move),
        )

    def to(self, device: torch.device | str) -> PackedRow:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


def pack(
    examples: Iterable[Example],
    num_image_tokens: int,
    tokens_per_row: int,
    images_per_row: int,
    filling: Filling | None = None,
) -> list[PackedRow]:
    """Examples in their order, in as few rows as that order allows (M = ``num_image_tokens`` positions a picture)."""
    rows: list[list[Example]] = []
    tokens = images = 0
    for example in examples:
        length = len(example.tokens.ids) + num_image_tokens * len(example.pixels)
        full = tokens + length > tokens_per_row or images + len(example.pixels) > images_per_row
        if not rows or full:
            rows.append([])
            tokens = images = 0
        rows[-1].append(example)
        tokens += length
        images += len(example.pixels)
    return [pack_row(row, num_image_tokens, filling) for row in rows]


def pack_row(examples: Sequence[Example], num_image_tokens: int, filling: Filling | None = None) -> PackedRow:
    """All of ``examples`` in one row, filled up if need be."""
    token_ids: list[int] = []
    targets: list[int] = []
    image_slots: list[int] = []
    lengths = []
    for example in examples:
        ids, supervised, slots = _lay_out(example.tokens, num_image_tokens)
        image_slots += [len(token_ids) + slot for slot in slots]
        token_ids += ids
        targets += [token if taught else IGNORED for token, taught in zip(ids[1:], supervised[1:], strict=True)] + [
            IGNORED
        ]
        lengths.append(len(ids))
    pixels = [example.pixels for example in examples]
    num_tokens, num_images, longest = len(token_ids), sum(map(len, pixels)), 0
    num_pairs = sum(length**2 for length in lengths)
    if filling:
        missing = filling.missing(num_tokens)
        token_ids += [0] * missing
        targets += [IGNORED] * missing
        lengths, longest = filling.segments(lengths, missing), filling.longest if filling.varlen else 0
        pixels.append(pixels[0].new_zeros(filling.images(num_images), *pixels[0].shape[1:]))
    return PackedRow(
        token_ids=torch.tensor(token_ids),
        targets=torch.tensor(targets),
        pixels=torch.cat(pixels),
        image_slots=torch.tensor(image_slots, dtype=torch.int64),
        target_slots=torch.tensor([t for t, target in enumerate(targets) if target != IGNORED], dtype=torch.int64),
        segments=Segments.of(lengths, longest),
        num_samples=len(examples),
        num_tokens=num_tokens,
        num_images=num_images,
        num_pairs=num_pairs,
        origins=tuple(example.origin for example in examples),
        ids=tuple(example.id for example in examples),
    )


def _lay_out(tokens: Tokens, num_image_tokens: int) -> tuple[list[int], list[bool], list[int]]:
    """Ids and supervision with M positions reserved for each picture, and those positions."""
    ids: list[int] = []
    supervised: list[bool] = []
    slots: list[int] = []
    start = 0
    for at in [*tokens.image_at, len(tokens.ids)]:
        ids += tokens.ids[start:at]
        supervised += tokens.supervised[start:at]
        start = at
        if len(slots) < num_image_tokens * len(tokens.image_at):
            slots += range(len(ids), len(ids) + num_image_tokens)
            ids += [0] * num_image_tokens
            supervised += [False] * num_image_tokens
    return ids, supervised, slots
