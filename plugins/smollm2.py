"""SmolLM2, and any other decoder of the Llama architecture, in plain PyTorch.

Source: Touvron et al. 2023, arXiv 2302.13971 (Llama); Allal et al. 2025, arXiv 2502.02737 (SmolLM2).
"""

from typing import Annotated, Any, Self

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nanovlm import CheckpointError, ConfigError, LanguageDecoder, TextConfig, hookimpl
from nanovlm.attention import KVCache, Segments, attention, rotary_table, rotate
from nanovlm.hub import CONFIG, WEIGHTS, fetch
from nanovlm.weights import load_weights, read_json, read_tensors

# Their architecture is the defaults below, so planning them needs no network.
KNOWN = ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct")
Positive = Annotated[int, Field(ge=1)]


class SmolLM2(LanguageDecoder):
    class Config(TextConfig):
        vocab_size: Positive = 49152
        """V, the number of token embeddings."""
        hidden_size: Positive = 576
        """D, the width of a token."""
        intermediate_size: Positive = 1536
        """The width within the MLP."""
        num_hidden_layers: Positive = 30
        num_attention_heads: Positive = 9
        num_key_value_heads: Positive = 3
        """Heads of keys and values, each shared by a group of query heads."""
        max_position_embeddings: Positive = 8192
        """The longest sample, in tokens."""
        rope_theta: float = 100000.0
        """The base of the rotary frequencies."""
        rms_norm_eps: float = 1e-5
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
            return self.fill_in(architecture(self.weights))

    cos: Tensor
    sin: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        if config.hidden_size % heads or heads % kv_heads or config.hidden_size // heads % 2:
            raise ConfigError(
                f"num_attention_heads={heads} must divide hidden_size={config.hidden_size} into heads of even width, "
                f"and num_key_value_heads={kv_heads} must divide num_attention_heads"
            )
        self.config = config
        self.dim = config.hidden_size
        self.max_positions = config.max_position_embeddings
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.head = None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        cos, sin = rotary_table(config.hidden_size // heads, config.max_position_embeddings, config.rope_theta)
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
        head_dim = config.hidden_size // config.num_attention_heads
        return KVCache(
            config.num_hidden_layers, samples, max_tokens, config.num_key_value_heads, head_dim, self.embedding.weight
        )

    def load_pretrained(self) -> None:
        if self.config.weights != "random":
            tensors = read_tensors(fetch(self.config.weights, WEIGHTS))
            ignored = (
                ("lm_head.",) if self.config.tie_word_embeddings else ()
            )  # some tied checkpoints hold the head too
            load_weights(self, tensors, self.config.weights, rename, ignored)


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
        width, self.layer = config.hidden_size, layer
        self.head_dim = width // config.num_attention_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=False)
        self.value = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, segments: Segments, cache: KVCache | None) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.query, self.key, self.value)
        )  # (T, heads, d)
        attended = attention(rotate(q, cos, sin), rotate(k, cos, sin), v, segments, cache, self.layer)
        return self.output(attended.flatten(1))  # (T, D)


class MLP(nn.Module):
    """A gated MLP (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def architecture(weights: str) -> dict[str, Any]:
    """The options that a checkpoint's ``config.json`` decides; CheckpointError if this decoder cannot represent it."""
    text_options = TextConfig.model_fields
    defaults = {key: field.default for key, field in SmolLM2.Config.model_fields.items() if key not in text_options}
    if weights in KNOWN:
        return defaults
    folder = fetch(weights, CONFIG)
    config = read_json(folder / "config.json")
    if config.get("model_type") != "llama":
        raise CheckpointError(
            f"{folder} holds a model of type {config.get('model_type')!r}, not of the Llama architecture"
        )
    rope: Any = config.get("rope_scaling") or config.get("rope_parameters") or {}  # transformers 4, or 5
    refused = [f"{key}={config[key]!r}" for key in ("attention_bias", "mlp_bias") if config.get(key)]
    if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
        refused.append(f"rope_type={kind!r}")
    if config.get("hidden_act", "silu") != "silu":
        refused.append(f"hidden_act={config['hidden_act']!r}")
    if config.get("head_dim") not in (None, config["hidden_size"] // config["num_attention_heads"]):  # type: ignore[operator]
        refused.append(f"head_dim={config['head_dim']!r}")
    if refused:
        raise CheckpointError(f"{folder}: this decoder cannot represent {', '.join(refused)}")
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    kv_heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    llama = {
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
    }  # transformers' defaults
    found = {key: config.get(key, llama.get(key, default)) for key, default in defaults.items()}
    return found | {"rope_theta": float(theta), "num_key_value_heads": kv_heads}


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
