"""Causal attention over packed samples and over a cache: one door for every decoder.

A row holds S samples end to end, T tokens in all. Attention never crosses a sample's border, and no mask tensor exists
in training: samples of similar length are gathered into groups, padded on the right and attended with ``is_causal``.
Padding on the right needs no mask, since a causal query never looks to its right. (A T x T block mask costs 20 times
as much at 8,192 tokens, and keeps scaled dot product attention off its flash kernel.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP_WASTE = 0.25  # samples share a group while padding stays under this share of it
GROUP_MIN_LENGTH = 16  # below this many tokens, padding is cheaper than another kernel launch


@dataclass(frozen=True)
class Segments:
    """Where the samples of a packed row are. Made by the collator, moved to the device with the row.

    positions (T,) int64: each token's place in its own sample.
    sample_ids (T,) int64: which sample each token belongs to.
    cu_seqlens (S+1,) int32: where the samples begin, and where the last one ends.
    groups: for each group of samples, (G, L) int64 token indices; those past a sample's end repeat a token of its own.
    inverse (T,) int64: where each token's result stands in the groups' results laid end to end.
    """

    positions: Tensor
    sample_ids: Tensor
    cu_seqlens: Tensor
    groups: tuple[Tensor, ...]
    inverse: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Segments:
        """Segments for samples of these lengths, laid end to end."""
        counts = torch.tensor(lengths)
        starts = F.pad(counts.cumsum(0), (1, 0))
        sample_ids = torch.repeat_interleave(torch.arange(len(lengths)), counts)
        positions = torch.arange(int(starts[-1])) - starts[sample_ids]
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


def packed_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """Causal attention within each segment.

    q (T, H, d), k and v (T, K, d) where K divides H (grouped queries; Ainslie et al. 2023, arXiv 2305.13245)
    -> (T, H, d).
    """
    results = []
    for index in segments.groups:  # (G, L)
        queries, keys, values = (x[index].transpose(1, 2) for x in (q, k, v))  # (G, H or K, L, d)
        grouped = q.shape[1] != k.shape[1]
        result = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=grouped)
        results.append(result.transpose(1, 2).flatten(0, 1))  # (G*L, H, d)
    return torch.cat(results)[segments.inverse]


class KVCache:
    """Keys and values of S sequences, for decoding token by token.

    The first call of a decoder fills it from a packed row of S prompts; each later call brings one token a sequence.
    """

    def __init__(self, layers: int, samples: int, max_tokens: int, heads: int, head_dim: int, like: Tensor) -> None:
        self.keys = like.new_zeros(layers, samples, max_tokens, heads, head_dim)
        self.values = torch.zeros_like(self.keys)
        self.lengths = torch.zeros(samples, dtype=torch.int64, device=like.device)  # (S,)

    @property
    def empty(self) -> bool:
        return not self.lengths.any()

    def next(self) -> Segments:
        """The segments of one further token for each sequence."""
        each = torch.arange(len(self.lengths), device=self.lengths.device)
        starts = torch.arange(len(self.lengths) + 1, dtype=torch.int32, device=self.lengths.device)
        return Segments(self.lengths, each, starts, (each[:, None],), each)

    def advance(self, segments: Segments) -> None:
        """Count the tokens of a whole forward pass in, after its last layer."""
        self.lengths = segments.positions[segments.last] + 1

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
        """Store this pass's keys and values of one layer, and attend to all that the cache now holds."""
        self.keys[layer, segments.sample_ids, segments.positions] = k.to(self.keys.dtype)
        self.values[layer, segments.sample_ids, segments.positions] = v.to(self.values.dtype)
        if self.empty:
            return packed_attention(q, k, v, segments)
        longest = int(segments.positions.max()) + 1
        # (S, K, L, d)
        keys, values = (x[layer, :, :longest].transpose(1, 2).to(q.dtype) for x in (self.keys, self.values))
        # With a single query a mask costs nothing: it is (S, 1, 1, L).
        seen = torch.arange(longest, device=q.device) <= segments.positions[:, None, None, None]
        grouped = q.shape[1] != k.shape[1]
        result = F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=seen, enable_gqa=grouped)
        return result[:, :, 0]  # (S, H, d)


def attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, cache: KVCache | None = None, layer: int = 0
) -> Tensor:
    """Attention of q (T, H, d) to k, v (T, K, d) within segments, and to what ``cache`` holds of them -> (T, H, d)."""
    if cache is None:
        return packed_attention(q, k, v, segments)
    return cache.attention(layer, q, k, v, segments)


def rotary_table(
    head_dim: int, max_positions: int, theta: float, rescale: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (P, d/2) of rotary positions (Su et al. 2021, arXiv 2104.09864), for all layers.

    ``rescale`` gets the frequencies (d/2,), in radians a position, and gives those that are to be used.
    """
    frequencies = 1 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rescale:
        frequencies = rescale(frequencies)
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of x (T, H, d) by the angles of its positions, cos and sin (T, 1, d/2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
