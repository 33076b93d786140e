"""SmolLM2, and any other decoder of the Llama architecture, in plain PyTorch.

Source: Touvron et al. 2023, arXiv 2302.13971 (Llama); Allal et al. 2025, arXiv 2502.02737 (SmolLM2).
"""

import math
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from nanovlm import CheckpointError, ConfigError, LanguageDecoder, TextConfig, hookimpl
from nanovlm.attention import Segments, attention, suits_flash
from nanovlm.components import Schema, parse
from nanovlm.hub import CONFIG, WEIGHTS, fetch
from nanovlm.interop.parts import TransformersPart
from nanovlm.kv_cache import KVCache
from nanovlm.rotary import rotary_table, rotate
from nanovlm.vocabulary import extended, rows_for
from nanovlm.weights import check_tied, differing, load_weights, read_checkpoint_config, read_tensors

Positive = Annotated[int, Field(ge=1)]
Above0 = Annotated[float, Field(gt=0)]


class Llama3Scaling(Schema):
    """Slower rotary frequencies, for longer texts than were pretrained on (Grattafiori et al. 2024, arXiv 2407.21783).

    What turns slowly over the pretrained length is slowed down by ``factor``; what turns fast stays as it is.
    """

    factor: Above0
    """What slow frequencies are divided by."""
    low_freq_factor: Above0
    """Frequencies of fewer turns in the pretrained length are divided by `factor`."""
    high_freq_factor: Above0
    """Frequencies of more turns stay; in between, the two are mixed."""
    original_max_position_embeddings: Positive
    """The length that was pretrained on, in tokens."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError("low_freq_factor must be less than high_freq_factor")
        return self

    def __call__(self, frequencies: Tensor) -> Tensor:  # (d/2,), in radians a token
        turns = frequencies * self.original_max_position_embeddings / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return torch.lerp(frequencies / self.factor, frequencies, kept.clamp(0, 1))


class SmolLM2(LanguageDecoder):
    class Config(TextConfig):
        known_sizes = {
            f"HuggingFaceTB/SmolLM2-{size}{kind}": megabytes * 1_000_000
            for size, megabytes in (("135M", 269), ("360M", 724), ("1.7B", 3423))
            for kind in ("", "-Instruct")
        }
        vocab_size: Positive = 49152
        """V, the number of token embeddings."""
        hidden_size: Positive = 576
        """D, the width of a token."""
        intermediate_size: Positive = 1536
        """The width within the MLP."""
        num_hidden_layers: Positive = 30
        """Blocks of attention and an MLP, one after the other."""
        num_attention_heads: Positive = 9
        """Heads of queries in each block."""
        num_key_value_heads: Positive = 3
        """Heads of keys and values, each shared by a group of query heads."""
        head_dim: Annotated[int, Field(ge=0)] = 0
        """d, the width of a head; 0 is hidden_size / num_attention_heads."""
        max_position_embeddings: Positive = 8192
        """The longest sample, in tokens."""
        rope_theta: Above0 = 100000.0
        """The base of the rotary frequencies."""
        rope_scaling: Llama3Scaling | None = None
        """What slows them down for longer texts: Llama 3's rule, or nothing."""
        rms_norm_eps: float = 1e-5
        """Added to the mean square that a norm divides by."""
        tie_word_embeddings: bool = True
        """The head is the embedding again."""

        @classmethod
        def tiny(cls) -> Self:
            return cls(
                vocab_size=257,
                hidden_size=24,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
            )

        def resolved(self) -> Self:
            if self.weights == "random":
                return self
            found = architecture(self.weights)
            asked = self.vocab_size if "vocab_size" in self.model_fields_set else None
            return self.fill_in(found | {"vocab_size": rows_for(self, found["vocab_size"], asked)})

        @property
        def width_of_head(self) -> int:
            return self.head_dim or self.hidden_size // self.num_attention_heads

    cos: Tensor
    sin: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        undivided = config.hidden_size % heads if not config.head_dim else 0
        if undivided or heads % kv_heads or config.width_of_head % 2:
            raise ConfigError(
                f"num_attention_heads={heads} must divide hidden_size={config.hidden_size} into heads of even width, "
                f"and num_key_value_heads={kv_heads} must divide num_attention_heads"
            )
        self.config = config
        self.dim = config.hidden_size
        self.max_positions = config.max_position_embeddings
        self.varlen = suits_flash(config.width_of_head)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.head = None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        cos, sin = rotary_table(
            config.width_of_head, config.max_position_embeddings, config.rope_theta, config.rope_scaling
        )
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.apply(self.initialise)

    def initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.dim**-0.5)  # 1/24 at width 576, as SmolLM2 was trained from
        if isinstance(module, Block):  # what is added to the residual stream starts small (GPT-2)
            for linear in (module.attention.output, module.mlp.down):
                nn.init.normal_(linear.weight, std=(2 * self.dim * self.config.num_hidden_layers) ** -0.5)

    def embed(self, token_ids: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(token_ids)
        return embedded

    def forward(self, x: Tensor, segments: Segments, cache: KVCache | None = None) -> Tensor:  # (T, D)
        cos, sin = self.cos[segments.positions, None], self.sin[segments.positions, None]  # (T, 1, d/2)
        for block in self.blocks:
            x = block(x, cos, sin, segments, cache)
        if cache is not None:
            cache.advance(segments)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedding.weight if self.head is None else self.head.weight)

    def new_cache(self, samples: int, max_tokens: int) -> KVCache:
        config = self.config
        heads, width = config.num_key_value_heads, config.width_of_head
        return KVCache(config.num_hidden_layers, samples, max_tokens, heads, width, self.embedding.weight)

    def load_pretrained(self) -> None:
        if self.config.weights == "random":
            return
        tensors = read_tensors(fetch(self.config.weights, WEIGHTS))
        # Checkpoints of early versions of transformers keep the frequencies, which follow from the config.
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".rotary_emb.inv_freq")}
        if self.config.tie_word_embeddings and "lm_head.weight" in tensors:
            head = tensors.pop("lm_head.weight")
            embedding = next((tensor for name, tensor in tensors.items() if name.endswith("embed_tokens.weight")), None)
            check_tied("lm_head.weight", head, embedding, self.config.weights)
        tables = {"embedding.weight": self.embedding.weight}
        if self.head is not None:
            tables["head.weight"] = self.head.weight
        tensors = extended(tensors, tables, self.config, rename)
        load_weights(self, tensors, self.config.weights, rename)

    def to_transformers(self) -> TransformersPart:
        config, scaling = self.config, self.config.rope_scaling
        rope = {"rope_type": "llama3", **scaling.model_dump()} if scaling else {"rope_type": "default"}
        rest = {"head_dim": config.width_of_head, "rope_parameters": {**rope, "rope_theta": config.rope_theta}}
        sizes = {key: getattr(config, key) for key in OPTIONS if key not in ("head_dim", "rope_scaling", "rope_theta")}
        return TransformersPart({"model_type": "llama", **sizes, **rest}, rename)


class Block(nn.Module):
    def __init__(self, config: SmolLM2.Config, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, segments: Segments, cache: KVCache | None) -> Tensor:
        x = x + self.attention(self.norm1(x), cos, sin, segments, cache)
        return x + self.mlp(self.norm2(x))  # (T, D)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped queries."""

    def __init__(self, config: SmolLM2.Config, layer: int) -> None:
        super().__init__()
        self.head_dim, self.layer = config.width_of_head, layer
        width, queries = config.hidden_size, config.num_attention_heads * self.head_dim
        self.query = nn.Linear(width, queries, bias=False)
        self.key = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=False)
        self.value = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=False)
        self.output = nn.Linear(queries, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, segments: Segments, cache: KVCache | None) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.query, self.key, self.value)
        )  # (T, heads, d)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        # Only with a cache is the layer's number read: blocks that differ in it could not share a compiled graph.
        attended = attention(q, k, v, segments) if cache is None else cache.attention(self.layer, q, k, v, segments)
        return self.output(attended.flatten(1))  # (T, D)


class MLP(nn.Module):
    """A gated MLP (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


OPTIONS = tuple(key for key in SmolLM2.Config.model_fields if key not in TextConfig.model_fields)

# What differs from the defaults above: planning these needs no network.
SMOLLM2_360M = {
    "hidden_size": 960, "intermediate_size": 2560,
    "num_hidden_layers": 32, "num_attention_heads": 15, "num_key_value_heads": 5,
}  # fmt: skip
SMOLLM2_1_7B = {
    "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 32, "rope_theta": 130000.0,
}  # fmt: skip
KNOWN: dict[str, dict[str, Any]] = {
    f"HuggingFaceTB/SmolLM2-{size}{kind}": differences
    for size, differences in (("135M", {}), ("360M", SMOLLM2_360M), ("1.7B", SMOLLM2_1_7B))
    for kind in ("", "-Instruct")
}

# What a Llama's config leaves out, as transformers reads it.
LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10000.0,
}  # fmt: skip
# What it may say of these, if anything.
REPRESENTED = {
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0,
    "sliding_window": None, "partial_rotary_factor": 1.0,
}  # fmt: skip


def architecture(weights: str) -> dict[str, Any]:
    """The options that a checkpoint's ``config.json`` decides; CheckpointError if this decoder cannot represent it."""
    if weights in KNOWN:
        return {key: SmolLM2.Config.model_fields[key].default for key in OPTIONS} | KNOWN[weights]
    folder = fetch(weights, CONFIG)
    config = read_checkpoint_config(folder)
    if (kind := config.get("model_type")) != "llama":
        raise CheckpointError(
            f"{folder} holds a model of type {kind!r}, not of the Llama architecture; hf_decoder reads other decoders"
        )
    rope: dict[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}  # transformers 4, or 5
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    refused = differing(config | rope, REPRESENTED)
    if rope_type not in ("default", "llama3"):
        refused.append(f"rope_type={rope_type!r}")
    if refused:
        raise CheckpointError(
            f"{folder}: this decoder cannot represent {', '.join(refused)}; hf_decoder reads other decoders"
        )
    found = LLAMA | {key: value for key, value in (config | rope).items() if key in OPTIONS and value is not None}
    found.setdefault("num_key_value_heads", found["num_attention_heads"])
    found["rope_scaling"] = llama3_scaling(found, config, rope) if rope_type == "llama3" else None
    checked = parse(SmolLM2.Config, found, where=str(folder / "config.json"))
    if checked.head_dim * checked.num_attention_heads == checked.hidden_size:
        checked = checked.model_copy(update={"head_dim": 0})  # as if left out
    return {key: getattr(checked, key) for key in OPTIONS}


def llama3_scaling(found: dict[str, Any], config: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    length = "original_max_position_embeddings"
    pretrained = config.get(length, rope.get(length, found["max_position_embeddings"]))
    return {key: rope[key] for key in Llama3Scaling.model_fields if key in rope} | {length: pretrained}


RENAMED = (
    ("model.", ""),
    ("embed_tokens", "embedding"),
    ("layers.", "blocks."),
    ("input_layernorm", "norm1"),
    ("post_attention_layernorm", "norm2"),
    ("lm_head", "head"),
    ("self_attn", "attention"),
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("o_proj", "output"),
    ("_proj", ""),
)


def rename(name: str) -> str:
    for old, new in RENAMED:
        name = name.replace(old, new)
    return name


@hookimpl
def register_language_decoders(register):
    register("smollm2", SmolLM2)
