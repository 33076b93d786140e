"""Keys and values of what was read, for decoding token by token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.attention import Segments, attention


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
            return attention(q, k, v, segments)
        longest = int(segments.positions.max()) + 1
        # (S, K, L, d)
        keys, values = (x[layer, :, :longest].transpose(1, 2).to(q.dtype) for x in (self.keys, self.values))
        # With a single query a mask costs nothing: it is (S, 1, 1, L).
        seen = torch.arange(longest, device=q.device) <= segments.positions[:, None, None, None]
        grouped = q.shape[1] != k.shape[1]
        result = F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=seen, enable_gqa=grouped)
        return result[:, :, 0]  # (S, H, d)
