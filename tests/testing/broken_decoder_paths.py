"""Decoders that break when they are run or used in one way: the sound companion with one small change."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from broken_decoders import Layered
from torch import nn

from nanovlm import ComponentConfig
from nanovlm.data.tokenizer import byte_tokenizer
from nanovlm.testing.companions import Decoder, Layer

# Compiled


class Branching(Layer):
    def forward(self, x, segments, cache):
        return super().forward(x if x.sum() > 0 else -x, segments, cache)


class BranchingBlocks(Layered):
    layer = Branching


class Different(Layer):
    def forward(self, x, segments, cache):
        return x if torch.compiler.is_compiling() else super().forward(x, segments, cache)


class DifferentWhenCompiled(Layered):
    layer = Different


# Flash attention


class OwnGroups(Layer):
    """Attention by the segments' groups, which are not there for flash attention."""

    def forward(self, x, segments, cache):
        if cache is not None:
            return super().forward(x, segments, cache)
        seen = self.norm(x)
        q, k, v = (part(seen) for part in (self.query, self.key, self.value))
        parts = [
            F.scaled_dot_product_attention(q[index], k[index], v[index], is_causal=True).flatten(0, 1)
            for index in segments.groups
        ]
        return self.mlp(x + self.output(torch.cat(parts)[segments.inverse]))


class ReadsGroups(Layered):
    layer = OwnGroups


class OwnMask(Layer):
    def forward(self, x, segments, cache):
        if cache is not None:
            return super().forward(x, segments, cache)
        seen = self.norm(x)
        q, k, v = (part(seen)[None] for part in (self.query, self.key, self.value))
        same = segments.sample_ids[:, None] == segments.sample_ids
        mask = same & (segments.positions[:, None] >= segments.positions)
        return self.mlp(x + self.output(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0]))


class MasksByItself(Layered):
    layer = OwnMask


class CountsGroups(Decoder):
    def forward(self, x, segments, cache=None):
        return super().forward(x * (1 + len(segments.groups)), segments, cache)


class NarrowHeads(Decoder):
    class Config(Decoder.Config):
        dim: int = 24
        """D, the width of a token."""

    def __init__(self, config):
        super().__init__(config)
        self.varlen = True


# Devices and precisions


class OnTheCpu(Decoder):
    def forward(self, x, segments, cache=None):
        return super().forward(x + torch.zeros(len(x), 1, device="cpu"), segments, cache)


class GivesOnTheCpu(Decoder):
    def logits(self, hidden):
        return super().logits(hidden).cpu()


class CopiesIntoFp32(Decoder):
    def logits(self, hidden):
        logits = super().logits(hidden)
        room = logits.new_zeros(logits.shape, dtype=torch.float32)
        room[torch.arange(len(logits))] = logits
        return room


class Cancels(Decoder):
    def logits(self, hidden):
        return super().logits(hidden) + 1000 - 1000


class LeavesTheGpu(Decoder):
    def forward(self, x, segments, cache=None):
        return super().forward(x.cpu() if x.is_cuda else x, segments, cache)


# LoRA


class ByItsWeight(Layer):
    def __init__(self, config, number):
        super().__init__(config, number)
        self.scale = nn.Linear(config.dim, config.dim)

    def forward(self, x, segments, cache):
        return super().forward(F.linear(x, self.scale.weight), segments, cache)


class PassesAdaptersBy(Layered):
    layer = ByItsWeight


class AsksForItsKind(Layer):
    def forward(self, x, segments, cache):
        return super().forward(x if isinstance(self.output, nn.Linear) else 2 * x, segments, cache)


class OtherWithAdapters(Layered):
    layer = AsksForItsKind


class BothWays(Layer):
    def forward(self, x, segments, cache):
        return super().forward(x + F.linear(x, self.output.weight), segments, cache)


class OtherOnceMerged(Layered):
    layer = BothWays


# Text


class FewWords(Decoder):
    class Config(Decoder.Config):
        vocab_size: int = 100
        """V, the number of token embeddings."""


class LostTemplate(Decoder):
    class Config(Decoder.Config):
        template: str = "nowhere.jinja"
        """How a conversation becomes text."""


class Textless(Decoder):
    class Config(ComponentConfig):
        vocab_size: int = 257
        """V, the number of token embeddings."""

    def __init__(self, config):
        super().__init__(Decoder.Config(vocab_size=config.vocab_size))


FOLDER = TemporaryDirectory()  # of tokenizers; it goes when Python ends


@cache
def tokenizer(**changes):
    """A folder with the byte tokenizer, of whose tokenizer.json some entries are others."""
    folder = Path(FOLDER.name) / "-".join(changes)
    byte_tokenizer().save_pretrained(str(folder))
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8")) | {key: json.loads(value) for key, value in changes.items()}
    file.write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


class LowersCase(Decoder):
    class Config(Decoder.Config):
        @classmethod
        def tiny(cls):
            return cls(tokenizer=tokenizer(normalizer='{"type": "Lowercase"}'))


class SkipsIds(Decoder):
    class Config(Decoder.Config):
        @classmethod
        def tiny(cls):
            words = byte_tokenizer().get_vocab() | {"W": 400}
            del words["<|endoftext|>"]
            return cls(tokenizer=tokenizer(model=json.dumps({"type": "BPE", "vocab": words, "merges": []})))


KIND = "language_decoder"
BROKEN: dict[str, list[tuple[str, type | str, str]]] = {
    "blocks compile": [
        (KIND, BranchingBlocks, "does not compile as one graph: "),
        (KIND, DifferentWhenCompiled, "computes something else when it is compiled, off by"),
    ],
    "varlen is true": [
        (KIND, ReadsGroups, "fails where segments have no groups, as with flash attention: "),
        (KIND, MasksByItself, "sets varlen, but never calls nanovlm.attention"),
        (KIND, CountsGroups, "sets varlen, and without segments.groups its logits are others, off by"),
        (KIND, NarrowHeads, "sets varlen with heads 12 wide, which flash attention does not take"),
    ],
    "runs where its input is": [
        (KIND, OnTheCpu, "fails where all that it has and is given is on a GPU: "),
        (KIND, GivesOnTheCpu, "gives logits on cpu where its weights are on a GPU"),
    ],
    "half precision does": [
        (KIND, CopiesIntoFp32, "fails under autocast in bf16: RuntimeError"),
        (KIND, Cancels, "gives other logits under autocast in bf16 than in fp32 on the CPU, off by"),
    ],
    "runs on cuda": [(KIND, LeavesTheGpu, "fails on a GPU in fp32: RuntimeError")],
    "takes adapters": [
        (KIND, PassesAdaptersBy, "fails when adapters are added to its blocks: ConfigError: lora.targets: "),
        (KIND, OtherWithAdapters, "gives other logits with adapters that add nothing yet, off by"),
        (KIND, OtherOnceMerged, "gives other logits once its adapters are merged into the weights, off by"),
    ],
    "text goes in and out": [
        (KIND, Textless, "has a Config without a text side: derive it from nanovlm.TextConfig"),
        (KIND, FewWords, "fails when Config.tiny()'s tokenizer and template are loaded: ConfigError: the tok"),
        (KIND, LostTemplate, "template are loaded: ConfigError: template 'nowhere.jinja': expected"),
        (KIND, SkipsIds, "has vocab_size=257, and its tokenizer gives the id 400"),
        (KIND, LowersCase, "has a tokenizer that writes 'What is this?' and reads back 'question: what is this?"),
    ],
}  # fmt: skip
