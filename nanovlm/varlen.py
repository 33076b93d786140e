"""Flash attention for samples of different lengths: as they lie in a row, without groups or padding."""

from __future__ import annotations

from inspect import signature
from typing import Any

from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from nanovlm.attention import Segments

CAUSAL = (-1, 0)  # how far a query looks to its left (all the way) and to its right
NATIVE_GROUPS = "enable_gqa" in signature(varlen_attn).parameters  # not in torch 2.11: keys are repeated there


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """By flash attention's kernel for samples of different lengths, on CUDA in half precision."""
    options: dict[str, Any] = {"window_size": CAUSAL}
    if NATIVE_GROUPS:
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    else:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    ends, longest = segments.cu_seqlens, segments.longest
    return varlen_attn(q, k, v, ends, ends, longest, longest, **options)  # type: ignore[return-value]
