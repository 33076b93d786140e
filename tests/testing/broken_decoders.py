"""Decoders that break one promise each: the sound companion with one small change."""

import torch
from torch import nn

from nanovlm import Segments
from nanovlm.testing.companions import Decoder, Layer


class Layered(Decoder):
    """A decoder of layers of another class."""

    layer = Layer

    def __init__(self, config):
        super().__init__(config)
        self.blocks = nn.ModuleList(self.layer(config, number) for number in range(config.num_layers))


# Shapes


class Uncounted(Decoder):
    class Config(Decoder.Config):
        vocab_size: str = "257"
        """V, as a text."""

    def __init__(self, config):
        super().__init__(Decoder.Config())


class Dimless(Decoder):
    def __init__(self, config):
        super().__init__(config)
        del self.dim


class OtherDim(Decoder):
    def __init__(self, config):
        super().__init__(config)
        self.dim //= 2


class OneLogitShort(Decoder):
    def logits(self, hidden):
        return super().logits(hidden)[..., :-1]


class FlatLogits(Decoder):
    def logits(self, hidden):
        return super().logits(hidden.flatten(0, -2))


class HalfInside(Decoder):
    def forward(self, x, segments, cache=None):
        return super().forward(x, segments, cache).bfloat16()

    def logits(self, hidden):
        return super().logits(hidden.float())


class Short(Decoder):
    """A sound one."""

    class Config(Decoder.Config):
        max_positions: int = 512
        """The longest sample, in tokens."""


class PromisesOneMore(Short):
    def __init__(self, config):
        super().__init__(config)
        self.max_positions += 1


class Endless(Decoder):
    def __init__(self, config):
        super().__init__(config)
        self.max_positions = None


class Cramped(Decoder):
    class Config(Decoder.Config):
        max_positions: int = 48
        """The longest sample, in tokens."""


class FadesOut(Short):
    def forward(self, x, segments, cache=None):
        hidden = super().forward(x, segments, cache)
        return hidden / (segments.positions < 100)[:, None]


# What a token depends on


class CountsThrough(Decoder):
    """Positions do not begin anew with each sample."""

    def forward(self, x, segments, cache=None):
        through = torch.arange(len(x)) if cache is None else segments.positions
        return super().forward(x + self.positions(through), segments, cache)


class OneLongSample(Layer):
    def forward(self, x, segments, cache):
        return super().forward(x, Segments.of([len(x)]) if cache is None else segments, cache)


class CrossesBorders(Layered):
    layer = OneLongSample


class LooksAhead(Decoder):
    def forward(self, x, segments, cache=None):
        ends = torch.zeros(len(x), dtype=torch.bool).index_fill(0, segments.last, True)
        return super().forward(x + 0.1 * x.roll(-1, dims=0).masked_fill(ends[:, None], 0), segments, cache)


class Attentionless(Layer):
    def forward(self, x, segments, cache):
        return self.mlp(x + sum(part(x) for part in (self.query, self.key, self.value, self.output)))


class SeesItselfOnly(Layered):
    layer = Attentionless


class Detached(Decoder):
    def forward(self, x, segments, cache=None):
        return super().forward(x.detach(), segments, cache)


class WritesIntoItsInput(Decoder):
    def forward(self, x, segments, cache=None):
        with torch.no_grad():
            x *= 1.5
        return super().forward(x, segments, cache)


class RemembersIds(Decoder):
    def embed(self, token_ids):
        self.ids = token_ids
        return super().embed(token_ids)

    def forward(self, x, segments, cache=None):
        known = self.embedding(self.ids) if len(self.ids) == len(x) else 0
        return super().forward(x + known, segments, cache)


# The cache


class AlwaysFirst(Decoder):
    """With a cache, every token is at position 0."""

    def forward(self, x, segments, cache=None):
        if cache is not None and not cache.empty:
            x = x - self.positions(segments.positions) + self.positions(torch.zeros_like(segments.positions))
        return super().forward(x, segments, cache)


class OneCacheForAll(Decoder):
    def new_cache(self, samples, max_tokens):
        if not hasattr(self, "kept"):
            self.kept = super().new_cache(samples, max_tokens)
        return self.kept


class SharedKeys(Decoder):
    def new_cache(self, samples, max_tokens):
        cache = super().new_cache(samples, max_tokens)
        self.keys = cache.keys = getattr(self, "keys", cache.keys)
        return cache


class NeverTheSame(Decoder):
    used = 0.0

    def forward(self, x, segments, cache=None):
        hidden = super().forward(x, segments, cache)
        if cache is not None:
            self.used = 1.0
            return hidden
        return hidden + self.used


# Gradients, blocks


class Idle(Decoder):
    def __init__(self, config):
        super().__init__(config)
        self.unused = nn.Linear(2, 2)


class Blockless(Decoder):
    def __init__(self, config):
        super().__init__(config)
        self.layers = self.blocks
        del self.blocks

    def forward(self, x, segments, cache=None):
        x = x + self.positions(segments.positions)
        for layer in self.layers:
            x = layer(x, segments, cache)
        if cache is not None:
            cache.advance(segments)
        return self.norm(x)


class OnceOnly(Blockless):
    def __init__(self, config):
        super().__init__(config)
        self.blocks = iter(self.layers)


class Weightless(Blockless):
    def __init__(self, config):
        super().__init__(config)
        self.blocks = [nn.Identity()]


class PlainList(Decoder):
    def __init__(self, config):
        super().__init__(config)
        blocks = list(self.blocks)
        del self.blocks
        self.blocks = blocks


class PastItsBlocks(Blockless):
    def __init__(self, config):
        super().__init__(config)
        self.blocks = self.layers

    def forward(self, x, segments, cache=None):
        x = x + self.positions(segments.positions)
        for layer in self.layers:
            x = layer.forward(x, segments, cache)
        return self.norm(x)


KIND = "language_decoder"
BROKEN: dict[str, list[tuple[str, type | str, str]]] = {
    "shapes as promised": [
        (KIND, Uncounted, "has Config.vocab_size='257': give the number of token embeddings, V, there"),
        (KIND, Dimless, "has dim=None: set self.dim in __init__"),
        (KIND, OtherDim, "gives (31, 32) from embed(ids), ids (T,); with T=31, dim=16 and vocab_size=257 that should"),
        (KIND, OneLogitShort, "gives (31, 256) from logits(hidden), hidden (T, D); with T=31, dim=32 and vocab_size="),
        (KIND, FlatLogits, "gives (6, 257) from logits(hidden), hidden (2, 3, D)"),
        (KIND, HalfInside, "gives torch.bfloat16 from forward(x, segments), x (T, D) outside of autocast"),
    ],
    "reads up to max positions": [
        (KIND, PromisesOneMore, "fails on a sample of 513 tokens, where max_positions=513: IndexError"),
        (KIND, Endless, "has max_positions=None: set it in __init__, the longest sample in tokens"),
        (KIND, Cramped, "takes 48 tokens from Config.tiny(), which is to take 64"),
        (KIND, FadesOut, "gives no finite numbers for a sample of 512 tokens, where max_positions=512"),
    ],
    "packed equals separate": [
        (KIND, CountsThrough, "gives sample 2 of a row of (7, 1, 20, 3) tokens other logits than alone, off by"),
        (KIND, CrossesBorders, "other logits than alone, off by"),
    ],
    "looks back only": [
        (KIND, CrossesBorders, "lets a token depend on 8 tokens of other samples of the row: attend within a sample"),
        (KIND, LooksAhead, "lets a token depend on 1 tokens that come after it: attention is to be causal"),
        (KIND, SeesItselfOnly, "hidden states that do not depend on the token before it: is attention left out?"),
        (KIND, Detached, "hidden states that do not depend on itself"),
    ],
    "works from embeddings alone": [
        (KIND, WritesIntoItsInput, "changes the embeddings that it is given: write `x = x + ...`, not `x += ...`"),
        (KIND, RemembersIds, "gives other hidden states for the same embeddings after `embed` was called for others"),
    ],
    "cached equals plain": [
        (KIND, AlwaysFirst, "gives with a cache other logits than without, off by"),
    ],
    "keeps caches apart": [
        (KIND, SharedKeys, "mixes two caches that are filled in turns: keep all that was read in what new_cache"),
        (KIND, OneCacheForAll, "fails when two caches are filled in turns: IndexError"),
        (KIND, NeverTheSame, "gives other hidden states without a cache once it was used with one"),
    ],
    "every parameter learns": [(KIND, Idle, "gives no gradient to unused.weight, unused.bias: use it in `forward`")],
    "blocks are its parts": [
        (KIND, Blockless, "has no `blocks`: list its layers there"),
        (KIND, OnceOnly, "has `blocks` that can be gone through only once"),
        (KIND, Weightless, "has `blocks` without a single weight"),
        (KIND, PlainList, "weights in its `blocks` that are none of its own, and so neither trained nor saved"),
        (KIND, PastItsBlocks, "does not call its blocks 0, 1 as modules"),
    ],
}  # fmt: skip
