"""Rows of the embedding (and of the head) for markers that a pretrained checkpoint does not know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nanovlm.components import TextConfig
from nanovlm.data.image_format import markers


def rows_for(config: TextConfig, own: int, asked: Any = None) -> int:
    """V for a checkpoint of ``own`` rows: one more for each marker, or none where just its own number is ``asked`` for.

    The tokenizer, which gives the ids, is not read for this: a marker that it has already leaves a row unused, and
    where the checkpoint has rows to spare markers get those.
    """
    return own if asked == own else own + len(markers(config))


def extended(
    tensors: Mapping[str, Tensor], tables: Mapping[str, Tensor], config: TextConfig, rename: Callable[[str], str] = str
) -> dict[str, Tensor]:
    """A checkpoint's ``tensors`` with rows for the markers, where it lacks just these.

    tables: the model's own embedding and head, under the names that ``rename`` gives a checkpoint's.
    """
    missing = len(markers(config))

    def whole(tensor: Tensor, drawn: Tensor | None) -> Tensor:
        if drawn is None or len(drawn) - len(tensor) != missing or tensor.is_meta:  # on meta: misshapen
            return tensor
        return with_new_rows(tensor, drawn)

    return {name: whole(tensor, tables.get(rename(name))) for name, tensor in tensors.items()}


def with_new_rows(tensor: Tensor, drawn: Tensor) -> Tensor:
    """A checkpoint's ``tensor`` (rows, ...), and below it the rows that ``drawn`` (more rows, ...) has beside.

    New rows are normal with each column's mean and standard deviation over the others (Hewitt 2021, "Initializing New
    Word Embeddings for Pretrained Language Models"), so that a marker is as large, and as likely, as a word. Their
    randomness is what the component drew when it was built, from its own generator.
    """
    new, old = drawn[len(tensor) :].detach().float(), tensor.float()
    if not len(new):
        return tensor
    noise = (new - new.mean()) / new.std(correction=0).clamp_min(1e-30)  # 0 where a bias is drawn as zeros
    rows = old.mean(dim=0) + noise.to(old) * old.std(dim=0, correction=0)
    return torch.cat((tensor, rows.to(tensor)))
