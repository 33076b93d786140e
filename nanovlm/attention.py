"""Causal attention over packed samples: one door for every decoder (over a cache: kv_cache.py).

A row holds S samples end to end, T tokens in all. Attention never crosses a sample's border, and no mask tensor exists
in training. Where flash attention takes samples of different lengths (``varlen``: CUDA, half precision), they are
attended as they lie. Elsewhere samples of similar length are gathered into groups, padded on the right and attended
with ``is_causal``: padding on the right needs no mask, since a causal query never looks to its right. (A T x T block
mask costs 20 times as much at 8,192 tokens, and keeps scaled dot product attention off its flash kernel.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP_WASTE = 0.25  # samples share a group while padding stays under this share of it
GROUP_MIN_LENGTH = 16  # below this many tokens, padding is cheaper than another kernel launch


@dataclass  # not frozen: of a frozen one torch 2.11 looks at every field, and compiles anew for each row's groups
class Segments:
    """Where the samples of a packed row are. Made by the collator, moved to the device with the row.

    positions (T,) int64: each token's place in its own sample.
    sample_ids (T,) int64: which sample each token belongs to.
    cu_seqlens (S+1,) int32: where the samples begin, and where the last one ends.
    groups: for each group of samples, (G, L) int64 token indices; those past a sample's end repeat a token of its own.
    inverse (T,) int64: where each token's result stands in the groups' results laid end to end.
    longest: for varlen attention, which needs no groups: no sample has more tokens. 0 with groups.
    """

    positions: Tensor
    sample_ids: Tensor
    cu_seqlens: Tensor
    groups: tuple[Tensor, ...]
    inverse: Tensor
    longest: int = 0

    @classmethod
    def of(cls, lengths: Sequence[int], longest: int = 0) -> Segments:
        """Segments for samples of these lengths, laid end to end; for varlen attention if ``longest`` is given."""
        counts = torch.tensor(lengths)
        starts = F.pad(counts.cumsum(0), (1, 0))
        sample_ids = torch.repeat_interleave(torch.arange(len(lengths)), counts)
        positions = torch.arange(int(starts[-1])) - starts[sample_ids]
        if longest:
            return cls(positions, sample_ids, starts.int(), (), starts.new_empty(0), longest)
        groups, inverse, base = [], torch.empty_like(positions), 0
        for members in _similar(lengths):
            length = max(lengths[s] for s in members)
            offsets = torch.arange(length)
            within = torch.minimum(offsets, counts[members, None] - 1)  # (G, L): past the end, the last token again
            groups.append(starts[members, None] + within)
            real = offsets < counts[members, None]
            inverse[groups[-1][real]] = base + torch.arange(real.numel()).view_as(real)[real]
            base += real.numel()
        return cls(positions, sample_ids, starts.int(), tuple(groups), inverse)

    @property
    def last(self) -> Tensor:
        """(S,): the index of each sample's last token."""
        return self.cu_seqlens[1:].long() - 1

    def map(self, move: Callable[[Tensor], Tensor]) -> Segments:
        """The same with ``move`` applied to every tensor (to a device, into pinned memory)."""
        return replace(
            self,
            positions=move(self.positions),
            sample_ids=move(self.sample_ids),
            cu_seqlens=move(self.cu_seqlens),
            groups=tuple(move(group) for group in self.groups),
            inverse=move(self.inverse),
        )


def _similar(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of samples, longest first, in groups whose padding stays small."""
    order = sorted(range(len(lengths)), key=lambda s: -lengths[s])
    groups: list[list[int]] = []
    for s in order:
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and (longest <= GROUP_MIN_LENGTH or lengths[s] >= longest * (1 - GROUP_WASTE)):
            groups[-1].append(s)
        else:
            groups.append([s])
    return groups


def attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """Causal attention within each segment.

    q (T, H, d), k and v (T, K, d) where K divides H (grouped queries; Ainslie et al. 2023, arXiv 2305.13245)
    -> (T, H, d).
    """
    if segments.longest:
        from nanovlm.varlen import varlen_attention  # brings torch's compiler along, which takes a while to import

        return varlen_attention(q, k, v, segments)
    return grouped_attention(q, k, v, segments)


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """By scaled dot product attention, on any device and in any precision."""
    results = []
    for index in segments.groups:  # (G, L)
        queries, keys, values = (x[index].transpose(1, 2) for x in (q, k, v))  # (G, H or K, L, d)
        grouped = q.shape[1] != k.shape[1]
        result = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=grouped)
        results.append(result.transpose(1, 2).flatten(0, 1))  # (G*L, H, d)
    return torch.cat(results)[segments.inverse]


def keep_groups_out_of_graphs() -> None:
    """Before anything is compiled: each row has groups of other shapes, so that no graph would be used again."""
    global grouped_attention
    grouped_attention = torch.compiler.disable(grouped_attention)


def varlen_obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Why varlen attention cannot be used; empty where it can."""
    if device.type != "cuda":
        return f"{device.type} has no kernel for it"
    if dtype not in (torch.float16, torch.bfloat16):
        return "it needs half precision"
    major, minor = torch.cuda.get_device_capability(device)
    return "" if major >= 8 else f"it needs compute capability 8.0, and this GPU has {major}.{minor}"


def suits_flash(head_dim: int) -> bool:
    """Whether flash attention takes heads of this width."""
    return head_dim % 8 == 0 and head_dim <= 256
