"""Any causal language model of the transformers library as a decoder: Llama, Qwen, Gemma, OPT, Mamba, ...

Such models are made for one sequence a row. What one of them cannot do with several samples it does all the same, in
silence and wrongly: a convolution runs across a border, positions go on counting. So each is tried out, when it is
built and again whenever weights were loaded, on a few short samples whose logits are compared with the library's own
for one sample at a time. The attributes say what was found to be right:

* ``packing``: ``padded``, samples of similar length in rows, padded on the right, where a causal model never looks; or
  ``packed``, the whole row in one pass, with ``position_ids`` that start anew at each sample.
* ``caching``, for generation: ``kept``, the library's own cache, on prompts padded on the left; else ``recomputed``:
  all that has been read is read again for each further token.

A model for which nothing is right is refused by name. On ``meta`` there is nothing to compare: ``padded`` is planned.
"""

import inspect
from collections.abc import Iterator
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from nanovlm import ConfigError, LanguageDecoder, Segments, TextConfig, hookimpl, unknown
from nanovlm.borrowed import (
    check_architecture,
    check_keys,
    layers,
    read_architecture,
    transformers_config,
    transformers_model,
)
from nanovlm.borrowed_decoder import Trial, head_of, stirred, token_tables, without_masks
from nanovlm.components import device_of
from nanovlm.data.image_format import markers
from nanovlm.errors import summary
from nanovlm.generation import evaluating
from nanovlm.hub import WEIGHTS, fetch
from nanovlm.interop.parts import TransformersPart
from nanovlm.kv_cache import KVCache
from nanovlm.vocabulary import extended, rows_for
from nanovlm.weights import check_tied, load_weights, read_tensors, repeated, translated

# Their architecture is the default below: planning them needs no network.
KNOWN = ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct")
SMOLLM2_135M = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
}
UNLIMITED = 2**20  # positions of a model without a table of them (Mamba)


class HFDecoder(LanguageDecoder):
    class Config(TextConfig):
        architecture: dict[str, Any] = SMOLLM2_135M
        """The configuration of transformers, `model_type` included; of a checkpoint, what its config.json says."""
        packing: Literal["padded", "packed"] = "padded"
        """What is tried first. `packed` needs a T x T mask: at 4,000 tokens it took twice as long on a CPU."""

        @classmethod
        def tiny(cls) -> Self:
            sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 6}
            heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
            limits = {"vocab_size": 257, "max_position_embeddings": 512}
            return cls(architecture={"model_type": "qwen3", **sizes, **heads, **limits})

        @property
        def vocab_size(self) -> int:
            """V, the number of token embeddings."""
            return vocab_size(self.architecture)

        def resolved(self) -> Self:
            if self.weights == "random":
                if "architecture" in self.model_fields_set:
                    check_keys(self.architecture, whole_config(self.architecture))
                return self
            found = SMOLLM2_135M if self.weights in KNOWN else read_architecture(self.weights, "text_config")[0]
            if markers(self):
                asked = self.vocab_size if "architecture" in self.model_fields_set else None
                found = with_vocab_size(found, rows_for(self, vocab_size(found), asked))
            if "architecture" in self.model_fields_set:
                check_architecture(self.architecture, found, self.weights)
            return self.model_copy(update={"architecture": found})

    def __init__(self, config: Config) -> None:
        from transformers import AutoModelForCausalLM

        super().__init__()
        self.config = config
        self.model = transformers_model(AutoModelForCausalLM, text_config(config.architecture))
        check_decoder_only(self.model)
        self.dim = self.model.get_input_embeddings().embedding_dim
        self.max_positions = max_positions(self.model)
        self.blocks = layers(self.body)
        self.head = (head_of(self.model, self.body),)  # in a tuple: its parameters are the model's own
        self.packing, self.caching = "padded", "recomputed"
        if device_of(self).type == "meta":
            without_masks(self.model)
        else:
            with stirred(self.model):
                self.try_out(tolerance=1e-5)

    @property
    def body(self) -> nn.Module:
        """The layers: all but the embedding and the head."""
        body: nn.Module = self.model.get_decoder()
        if body is self.model.get_output_embeddings():  # ModernBERT calls its head the decoder
            body = self.model.base_model
        return body

    def embed(self, token_ids: Tensor) -> Tensor:
        embedded: Tensor = self.model.get_input_embeddings()(token_ids)
        return embedded

    def forward(self, x: Tensor, segments: Segments, cache: Any = None) -> Tensor:  # (T, D)
        if cache is not None:
            hidden: Tensor = cache.read(x, segments)
            return hidden
        return self.packed(x, segments) if self.packing == "packed" else self.padded(x, segments)

    def packed(self, x: Tensor, segments: Segments) -> Tensor:
        return self.run(x[None], position_ids=segments.positions[None]).last_hidden_state[0]  # (T, D)

    def padded(self, x: Tensor, segments: Segments) -> Tensor:
        rows = [self.run(x[index]).last_hidden_state.flatten(0, 1) for index in segments.groups]  # (G*L, D) each
        return torch.cat(rows)[segments.inverse]

    def run(self, x: Tensor, use_cache: bool = False, **options: Any) -> Any:
        """The library's output for rows x (S, L, D), with those of ``options`` that the model knows.

        Without a cache: with one, which is what most models default to, they take a packed row for one sample.
        """
        known = inspect.signature(self.body.forward).parameters
        options = {name: value for name, value in options.items() if name in known}
        try:
            return self.body(inputs_embeds=x, use_cache=use_cache, **options)
        except Exception as error:  # some ask for the numbers (which expert a token goes to)
            if not x.is_meta:
                raise
            kind = self.model.config.model_type
            raise ConfigError(f"{kind} can be trained, but not planned without weights: {summary(error)}") from None

    def logits(self, hidden: Tensor) -> Tensor:
        """By the library's own code, whatever it does around the head (a factor, a soft cap)."""
        rows = hidden.flatten(0, -2)[None]  # (1, any number, D), none included
        logits: Tensor = self.head[0](inputs_embeds=rows, use_cache=False).logits
        return logits.view(*hidden.shape[:-1], logits.shape[-1])

    def new_cache(self, samples: int, max_tokens: int) -> KVCache:
        return (Kept if self.caching == "kept" else Recomputed)(self, samples, max_tokens)

    def load_pretrained(self) -> None:
        if self.config.weights != "random":
            tensors = translated(self.as_checkpoint(), read_tensors(fetch(self.config.weights, WEIGHTS)))
            tensors = extended(tensors, token_tables(self.model), self.config)
            again = repeated(self.model)  # a tied head
            for name in again.keys() & tensors.keys():
                check_tied(name, tensors[name], tensors.get(again[name]), self.config.weights)
            load_weights(self.model, tensors, self.config.weights, ignored=again)
            self.weights_loaded()

    def as_checkpoint(self) -> Any:
        """The model with as many tokens as the checkpoint has: if not itself, one on ``meta``."""
        from transformers import AutoModelForCausalLM

        own = vocab_size(read_architecture(self.config.weights, "text_config")[0])
        if own == self.config.vocab_size:
            return self.model
        with torch.device("meta"):
            architecture = with_vocab_size(self.config.architecture, own)
            return transformers_model(AutoModelForCausalLM, text_config(architecture))

    def weights_loaded(self) -> None:
        """What was right for random weights need not be for trained ones, in which a leak may show."""
        self.try_out(tolerance=1e-4)  # trained weights magnify what rounding differs by

    def try_out(self, tolerance: float) -> None:
        """Set ``packing`` and ``caching`` to what agrees with the library's own logits; ConfigError if nothing does."""
        with evaluating(self), torch.no_grad():
            trial = Trial(self, self.model, tolerance)
            trial.choose("packing", dict.fromkeys((self.config.packing, "padded")), trial.of_a_row)
            trial.choose("caching", ("kept", "recomputed"), trial.of_generation)

    def to_transformers(self) -> TransformersPart:
        config = text_config(self.config.architecture)
        if config.model_type != "llama":
            raise ConfigError(
                f"architecture {config.model_type} cannot be expressed in transformers' Idefics3, llama can"
            )
        return TransformersPart(
            config.to_dict(), lambda name: f"model.{name}" if name.startswith("lm_head.") else f"model.model.{name}"
        )


class Kept(KVCache):
    """The library's own cache, on rows of prompts padded on the left; only the lengths are kept here."""

    def __init__(self, decoder: HFDecoder, samples: int, max_tokens: int) -> None:
        super().__init__(0, samples, max_tokens, 0, 0, like=decoder.model.get_input_embeddings().weight)
        self.decoder = decoder
        parameters = inspect.signature(decoder.body.forward).parameters
        self.option = "cache" if "cache" in parameters else "past_key_values"  # of transformers 5.24, or earlier
        self.held: Any = None
        self.padding = torch.zeros_like(self.lengths)  # (S,): columns before each sample's first token
        self.mask = torch.zeros(samples, 0, dtype=torch.int64, device=self.lengths.device)  # (S, L): 1 where a token is

    def read(self, x: Tensor, segments: Segments) -> Tensor:  # (T, D)
        self.advance(segments)
        if self.held is None:
            self.padding = self.lengths.max() - self.lengths
        before = self.mask.shape[1]
        columns = segments.positions + self.padding[segments.sample_ids] - before
        place = segments.sample_ids, columns  # where each of the T tokens stands in the rows
        rows = x.new_zeros(len(self.lengths), int(columns.max()) + 1, x.shape[-1]).index_put(place, x)
        positions = columns.new_zeros(rows.shape[:2]).index_put(place, segments.positions)
        there = torch.zeros_like(positions).index_put(place, torch.ones_like(columns))
        self.mask = torch.cat((self.mask, there), dim=1)
        options = {"attention_mask": self.mask, "position_ids": positions, self.option: self.held}
        output = self.decoder.run(rows, use_cache=True, **options)
        self.held = output[self.option]
        return output.last_hidden_state[place]


class Recomputed(KVCache):
    """No cache at all: every token is read again for each that follows. Slow, and right for any causal model."""

    def __init__(self, decoder: HFDecoder, samples: int, max_tokens: int) -> None:
        weight = decoder.model.get_input_embeddings().weight
        super().__init__(0, samples, max_tokens, 0, 0, like=weight)
        self.decoder = decoder
        self.rows = weight.new_zeros(samples, max_tokens, decoder.dim)

    def read(self, x: Tensor, segments: Segments) -> Tensor:  # (T, D)
        self.advance(segments)
        self.rows[segments.sample_ids, segments.positions] = x.to(self.rows.dtype)
        output = self.decoder.run(self.rows[:, : int(self.lengths.max())]).last_hidden_state
        return output[segments.sample_ids, segments.positions]


def text_config(architecture: dict[str, Any]) -> Any:
    """The configuration of the language model, of a model of pictures and text as well."""
    return whole_config(architecture).get_text_config()


def vocab_size(architecture: dict[str, Any]) -> int:
    return int(text_config(architecture).vocab_size)


def with_vocab_size(architecture: dict[str, Any], size: int) -> dict[str, Any]:
    """The same with another number of tokens; ConfigError where the language model does not heed it."""
    changed = architecture | {"vocab_size": size}
    if vocab_size(changed) != size:
        kind = architecture["model_type"]
        raise ConfigError(f"{kind} takes no further tokens: leave extra_tokens out, and image_format plain")
    return changed


def whole_config(architecture: dict[str, Any]) -> Any:
    kind, known = architecture.get("model_type", ""), causal_models()
    if kind not in known:
        raise ConfigError(f"architecture: {unknown('model_type of a causal language model', str(kind), known)}")
    return transformers_config(architecture, causal_models)


CROSS_ATTENTION = ("encoder_attn", "crossattention", "cross_attn")  # as the library's models call it


def check_decoder_only(model: Any) -> None:
    """ConfigError for the decoder of an encoder-decoder model: without its encoder, part of it is never trained."""
    names = (name for name, _ in model.named_modules() if name.rpartition(".")[2] in CROSS_ATTENTION)
    if name := next(names, None):
        raise ConfigError(
            f"{model.config.model_type} is made to read an encoder's output: without one its cross-attention ({name}) "
            "would never be trained; use a decoder by itself, for example llama or qwen3"
        )


LIMITS = ("max_position_embeddings", "max_seq_len")  # the longest sample, as configurations call it (MPT's: the second)


def max_positions(model: Any) -> int:
    """The longest sample: what the table of positions holds, and what rotary frequencies are for.

    With some kinds of scaling the frequencies depend on the longest sample of a row, and so would a sample's result
    on its neighbours; they are used up to where that begins. ConfigError for a limit that is no number of tokens.
    """
    kind, config = model.config.model_type, model.config
    given = {name: getattr(config, name) for name in LIMITS if getattr(config, name, None) is not None}
    name, longest = next(iter(given.items()), ("", UNLIMITED))
    for rope in scalings(getattr(config, "rope_parameters", None) or {}):
        if rope.get("rope_type") in ("dynamic", "longrope"):
            longest = rope.get("original_max_position_embeddings") or longest
    if isinstance(longest, int):
        longest -= reserved_positions(model, longest)
    if not isinstance(longest, int) or longest < 1:
        raise ConfigError(
            f"architecture: {kind}'s {name}={given.get(name)!r} leaves no room for a sample's tokens: "
            "give the number of tokens that it can read"
        )
    return longest


def scalings(rope: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rotary parameters of all layers, or of each kind of layer by itself (Gemma 3)."""
    yield rope
    yield from (inner for inner in rope.values() if isinstance(inner, dict))


def reserved_positions(model: Any, size: int) -> int:
    """How many rows of the table of ``size`` positions no token gets: RoBERTa counts from after a padding row."""
    words = model.get_input_embeddings()
    tables = (part for part in model.modules() if isinstance(part, nn.Embedding) and part is not words)
    return sum(part.padding_idx + 1 for part in tables if part.num_embeddings == size and part.padding_idx is not None)


def causal_models() -> list[str]:
    """The model types that are causal language models, to suggest."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@hookimpl
def register_language_decoders(register):
    register("hf_decoder", HFDecoder)
