"""What a decoder may do, and what its checks leave as it was."""

import pytest
import torch
from broken_decoders import CrossesBorders, Layered
from torch import nn

from nanovlm import attention, varlen
from nanovlm.kv_cache import KVCache
from nanovlm.plugins import Registries
from nanovlm.testing.checks import bound_to, find
from nanovlm.testing.companions import Decoder, Layer


def outcomes(cls, *names):
    """Of these checks, or of all."""
    bound = bound_to(find(cls, "language_decoder", Registries()))
    return {str(each): each.outcome() for each in bound if not names or str(each) in names}


class Recurrent(nn.Module):
    """No attention: each token's state is the sum of those before it, in its own sample."""

    def __init__(self, dim):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(dim), nn.Linear(dim, dim)

    def forward(self, x, segments):
        seen = self.linear(self.norm(x))
        total = seen.cumsum(0)
        starts = segments.cu_seqlens[:-1].long()[segments.sample_ids]
        return x + total - total[starts] + seen[starts]


class Sums(Decoder):
    """Its cache is all that was read."""

    def __init__(self, config):
        super().__init__(config)
        self.varlen = False
        self.blocks = nn.ModuleList([Recurrent(config.dim)])

    def forward(self, x, segments, cache=None):
        x = x + self.positions(segments.positions)
        if cache is None:
            return self.norm(self.blocks[0](x, segments))
        parts = x.split(segments.cu_seqlens.diff().tolist())
        cache.rows = [torch.cat(pair) for pair in zip(cache.rows, parts, strict=True)] if cache.rows else parts
        cache.advance(segments)
        lengths = [len(row) for row in cache.rows]
        whole = self.blocks[0](torch.cat(cache.rows), attention.Segments.of(lengths)).split(lengths)
        return self.norm(torch.cat([row[-len(part) :] for row, part in zip(whole, parts, strict=True)]))

    def new_cache(self, samples, max_tokens):
        cache = super().new_cache(samples, max_tokens)
        cache.rows = []
        return cache


class PlainText(Decoder):
    """Options without LoRA."""

    class Config(Decoder.Config):
        lora: None = None
        """No adapters."""


class Short(Decoder):
    """As short as a tiny one may be, with one table for both ends of it."""

    class Config(Decoder.Config):
        max_positions: int = 64
        """Tokens."""

    def __init__(self, config):
        super().__init__(config)
        self.head.weight = self.embedding.weight


class KeepsNoConfig(Decoder):
    """What it needs of its options it keeps by itself."""

    def __init__(self, config):
        super().__init__(config)
        del self.config
        self.sizes = config

    def load_pretrained(self):
        pass

    def new_cache(self, samples, max_tokens):
        heads, like = self.sizes.num_heads, self.embedding.weight
        return KVCache(self.sizes.num_layers, samples, max_tokens, heads, self.dim // heads, like)


class ZeroBranch(Layer):
    def __init__(self, config, number):
        super().__init__(config, number)
        nn.init.zeros_(self.output.weight)


class BeginsAtZero(Layered):
    layer = ZeroBranch


class LeaksFromZero(CrossesBorders):
    def __init__(self, config):
        super().__init__(config)
        for block in self.blocks:
            nn.init.zeros_(block.output.weight)
            nn.init.zeros_(block.output.bias)


@pytest.mark.parametrize("cls", [Sums, PlainText, Short, KeepsNoConfig, BeginsAtZero])
def test_all_of_it_passes(cls):
    assert {name: outcome.problem for name, outcome in outcomes(cls).items() if outcome.problem} == {}


def test_a_check_says_why_it_was_not_made():
    assert outcomes(Sums, "varlen is true")["varlen is true"].skipped == "it does not set varlen"
    assert outcomes(PlainText, "takes adapters")["takes adapters"].skipped == "its options have no lora"


def test_a_leak_is_seen_behind_a_branch_that_begins_at_zero():
    """Of a fresh one nothing else would tell."""
    found = outcomes(LeaksFromZero, "packed equals separate", "looks back only")
    assert "other logits than alone" in found["packed equals separate"].problem
    assert "tokens of other samples" in found["looks back only"].problem


def test_attention_is_left_as_it_was_found(monkeypatch):
    """And blocks are judged alike before and after a training that keeps groups out of its graphs."""
    before = attention.grouped_attention, varlen.varlen_attention
    assert not outcomes(Decoder, "blocks compile")["blocks compile"].problem
    assert (attention.grouped_attention, varlen.varlen_attention) == before
    monkeypatch.setattr(attention, "grouped_attention", attention.grouped_attention)  # to be put back
    attention.keep_groups_out_of_graphs()
    assert not outcomes(Decoder, "blocks compile")["blocks compile"].problem
