import json

import pytest
import torch
from hf_folder import rewrite_config
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_recipe
from transformers import AutoConfig, AutoModelForCausalLM
from versions import older

from nanovlm import CheckpointError, ConfigError, Segments, load_plugins
from nanovlm.planning import plan

LENGTHS = [6, 1, 23, 11]
SMALL = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
MAMBA2 = {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8}
QWEN3_NEXT = {
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
OLDER = older("transformers", than="5.24")
FAMILIES = {  # the options of each; whether a packed row is read rightly; which cache is
    "llama": ({}, "packed", "kept"),
    "mistral": ({"sliding_window": 8}, "packed", "kept"),
    "qwen2": ({}, "packed", "kept"),
    "qwen3": ({"head_dim": 8}, "packed", "kept"),
    "gemma2": (GEMMA | {"final_logit_softcapping": 2.0}, "packed", "kept"),
    "gemma3_text": (GEMMA | {"layer_types": ["sliding_attention", "full_attention"]}, "packed", "kept"),
    "granite": ({"logits_scaling": 8.0, "embedding_multiplier": 12.0}, "packed", "kept"),
    "cohere": ({"logit_scale": 0.25}, "packed", "kept"),
    "gpt2": ({}, "packed", "kept"),
    "falcon": ({}, "padded" if OLDER else "packed", "kept"),
    "mixtral": ({"num_local_experts": 4}, "packed", "kept"),
    "opt": ({"ffn_dim": 48, "word_embed_proj_dim": 32}, "padded", "kept"),
    "bloom": ({}, "padded", "kept"),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "padded", "kept"),
    "qwen3_next": (QWEN3_NEXT, "padded", "kept"),
    "mamba": ({"state_size": 8}, "padded", "recomputed"),
    "mamba2": (MAMBA2, "padded", "recomputed" if OLDER else "kept"),
    "rwkv": ({"attention_hidden_size": 32}, "padded", "recomputed"),
    "modernbert-decoder": ({"cls_token_id": 1, "sep_token_id": 2}, "packed", "kept"),
}
every_family = pytest.mark.parametrize("kind", FAMILIES)
LEAKING = [kind for kind, (_, packing, _) in FAMILIES.items() if packing == "padded"]


def architecture_of(kind: str, **options):
    usual = AutoConfig.for_model(kind)
    small = {key: value for key, value in SMALL.items() if hasattr(usual, key)}
    return {"model_type": kind, **small, **FAMILIES.get(kind, ({},))[0], **options}


def reference_of(kind: str, **options):
    """The library's own model, with weights far enough from their initial zeros and ones."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**architecture_of(kind, **options))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def save(folder, kind: str, **options):
    model = reference_of(kind, **options)
    model.save_pretrained(folder)
    return model


def load(registries, folder, **options):
    """The decoder as an experiment gets it: resolved from ``config.json``, built, and loaded."""
    given = {"weights": str(folder), "tokenizer": "bytes", **options}
    config = registries.language_decoders.configure("hf_decoder", given).resolved()
    decoder = registries.language_decoders.find("hf_decoder").cls(config)
    decoder.load_pretrained()
    return decoder.eval()


def build(registries, packing: str = "padded", **architecture):
    return registries.language_decoders.build("hf_decoder", {"architecture": architecture, "packing": packing})


def random_ids(count: int = sum(LENGTHS)) -> torch.Tensor:
    return torch.randint(3, 257, (count,), generator=torch.Generator().manual_seed(1))


def logits_of(decoder, ids: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    return decoder.logits(decoder(decoder.embed(ids), Segments.of(lengths)))


def separately(model, ids: torch.Tensor) -> torch.Tensor:
    """The library's own logits, one sample at a time."""
    return torch.cat([model(input_ids=part[None], use_cache=False).logits[0] for part in ids.split(LENGTHS)])


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


def gradient_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("packing", ["padded", "packed"])
@every_family
def test_what_is_packed_equals_transformers_separate(registries, tmp_path, kind, packing):
    """Logits and gradients; and each family is read in the way that is right for it."""
    model = save(tmp_path, kind)
    decoder = load(registries, tmp_path, packing=packing)
    assert (decoder.packing, decoder.caching) == (
        "padded" if packing == "padded" else FAMILIES[kind][1],
        FAMILIES[kind][2],
    )
    ids = random_ids()
    found, expected = logits_of(decoder, ids, LENGTHS), separately(model, ids)
    assert relative_error(found, expected) < 1e-5
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert relative_error(gradient_of(decoder.model), gradient_of(model)) < 1e-5


@pytest.mark.parametrize("kind", LEAKING)
@torch.no_grad()
def test_a_family_that_is_padded_would_leak(registries, tmp_path, kind):
    model = save(tmp_path, kind)
    decoder = load(registries, tmp_path)
    decoder.packing = "packed"
    ids = random_ids()
    assert relative_error(logits_of(decoder, ids, LENGTHS), separately(model, ids)) > 1e-4


@every_family
@torch.no_grad()
def test_generation_equals_transformers_reading_all_again(registries, tmp_path, kind):
    model = save(tmp_path, kind)
    decoder = load(registries, tmp_path)
    samples = list(random_ids().split(LENGTHS))
    cache, segments = decoder.new_cache(len(LENGTHS), max(LENGTHS) + 4), Segments.of(LENGTHS)
    hidden = decoder(decoder.embed(torch.cat(samples)), segments, cache)[segments.last]
    for _ in range(4):
        logits = decoder.logits(hidden)
        expected = torch.stack([model(input_ids=sample[None], use_cache=False).logits[0, -1] for sample in samples])
        assert relative_error(logits, expected) < 1e-5
        ids = expected.argmax(dim=-1)
        samples = [torch.cat((sample, ids[s : s + 1])) for s, sample in enumerate(samples)]
        hidden = decoder(decoder.embed(ids), cache.next(), cache)


@torch.no_grad()
def test_it_equals_the_native_decoder(registries, tmp_path):
    save(tmp_path, "llama", tie_word_embeddings=True)
    decoder = load(registries, tmp_path)
    options = {"weights": str(tmp_path), "tokenizer": "bytes"}
    native = registries.language_decoders.find("smollm2").cls(
        registries.language_decoders.configure("smollm2", options).resolved()
    )
    native.load_pretrained()
    ids = random_ids()
    assert relative_error(logits_of(decoder, ids, LENGTHS), logits_of(native, ids, LENGTHS)) < 1e-5
    assert sum(p.numel() for p in decoder.parameters()) == sum(p.numel() for p in native.parameters())


def test_weights_that_start_at_zero_hide_no_leak(registries, monkeypatch):
    """The trial stirs them, and leaves them as they were."""
    original = AutoModelForCausalLM.from_config
    states = []

    def from_config(*args, **options):
        model = original(*args, **options)
        torch.nn.init.zeros_(model.model.layers[0].conv.out_proj.weight)
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", from_config)
    decoder = build(registries, "packed", **architecture_of("lfm2"))
    assert decoder.packing == "padded"
    assert all(tensor.equal(states[0][name]) for name, tensor in decoder.model.state_dict().items())


def test_weights_that_are_loaded_are_tried_out_too(tmp_path, monkeypatch):
    """A saved model's as well: in those that it is built with, no leak may show."""
    from nanovlm import VisionLanguageModel

    original = AutoModelForCausalLM.from_config

    def from_config(*args, **options):
        model = original(*args, **options)
        model.model.layers[0].conv.out_proj.weight.data *= 1e-9
        return model

    model = tiny_model(*overrides("lfm2"), "language_decoder.packing=packed")
    assert model.language_decoder.packing == "padded"
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", from_config)
    assert build(load_plugins(), "packed", **architecture_of("lfm2")).packing == "packed"
    again = VisionLanguageModel.from_pretrained(tmp_path / "model", load_plugins())
    assert again.language_decoder.packing == "padded"


def test_weights_that_are_no_numbers_say_so(registries):
    decoder = build(registries, **architecture_of("llama"))
    decoder.model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(ConfigError, match="llama gives logits that are no numbers: are its weights broken"):
        decoder.weights_loaded()


@pytest.mark.parametrize(
    ("architecture", "messages"),
    [
        ({"model_type": "bert", **SMALL}, ["bert is not for hf_decoder: several samples at once get other logits than",
                                           "(padded: off by ", "use another architecture, for example llama or qwen3"]),
        ({"model_type": "t5"}, ["architecture: unknown model_type of a causal language model 't5'.", "qwen3"]),
        ({"model_type": "llama", "hidden_size": "x"}, ["architecture: transformers cannot build this llama: "]),
        ({"model_type": "lama"}, ["architecture: unknown model_type of a causal language model 'lama'. Did you mean"]),
        ({}, ["architecture: unknown model_type of a causal language model ''"]),
        ({"model_type": "llama", "auto_map": {}}, ["architecture: auto_map is not about the architecture: leave"]),
        ({"model_type": "phi", **SMALL, "hidden_size": 24}, ["phi fails on a trial text: "]),  # 3 rotary dimensions
        ({"model_type": "qwen3_moe", **SMALL, "num_experts": 4}, ["qwen3_moe fails on a trial text: "]),  # it asks 8
        ({"model_type": "bart", **SMALL},
         ["bart is made to read an encoder's output: without one its cross-attention (model.decoder.layers.0.encoder_",
          "would never be trained; use a decoder by itself, for example llama or qwen3"]),
        ({"model_type": "bert", **SMALL, "is_decoder": True, "add_cross_attention": True},
         ["bert is made to read an encoder's output: "]),
        ({"model_type": "xlnet", "d_model": 32, "n_head": 4, "n_layer": 2, "d_inner": 48},
         ["architecture: xlnet's max_position_embeddings=-1 leaves no room for a sample's tokens: give the number of"]),
    ],
    ids=lambda value: str(value.get("model_type", "nothing")) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_is_no_causal_language_model_is_refused_by_name(registries, architecture, messages):
    with pytest.raises(ConfigError) as caught:
        build(registries, **architecture)
    for message in messages:
        assert message in str(caught.value)


def test_a_model_that_looks_at_nothing_before_a_token_cannot_be_tried_out(registries):
    with pytest.raises(ConfigError, match="llama cannot be tried out: a sample's first token changes nothing after it"):
        build(registries, **architecture_of("llama", num_hidden_layers=0))


def test_a_model_that_needs_more_than_text_is_refused_by_name(registries, monkeypatch):
    from transformers import LlamaForCausalLM

    def forward(self, *args, **kwargs):
        raise ValueError("pixel_values are missing")

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(ConfigError, match="llama fails on a trial text: pixel_values are missing"):
        build(registries, **architecture_of("llama"))


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_one_tensor(registries, tmp_path, tied):
    model = save(tmp_path, "qwen2", tie_word_embeddings=tied)
    decoder = load(registries, tmp_path)
    assert sum(p.numel() for p in decoder.parameters()) == sum(p.numel() for p in model.parameters())
    assert (decoder.model.lm_head.weight is decoder.model.model.embed_tokens.weight) == tied


def test_a_tied_checkpoint_may_hold_the_head_too(registries, tmp_path):
    model = save(tmp_path, "llama", tie_word_embeddings=True)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"lm_head.weight": model.lm_head.weight.detach().clone()}, file, {"format": "pt"})
    ids = random_ids()
    with torch.no_grad():
        assert relative_error(logits_of(load(registries, tmp_path), ids, LENGTHS), separately(model, ids)) < 1e-5


def test_a_trained_head_beside_a_tied_one_is_refused(registries, tmp_path):
    """Rather than left out: config.json says that the head is the embedding, and the weights that it is not."""
    save(tmp_path, "llama", tie_word_embeddings=True)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"lm_head.weight": torch.randn(257, 32)}, file, {"format": "pt"})
    message = (
        r"lm_head\.weight is not the embedding again, though config\.json says tie_word_embeddings: set it to false"
    )
    with pytest.raises(CheckpointError, match=message):
        load(registries, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_hiden_layers": 7}, "architecture: unknown option 'num_hiden_layers'. Did you mean 'num_hidden_layers'?"),
        ({"model_type": "gemma3", "text_config": {"hiden_size": 32}},
         "architecture.text_config: unknown option 'hiden_size'. Did you mean 'hidden_size'?"),
        ({"model_type": "gpt2", "n_positions": 64, "rope_theta": 1e4}, "architecture: unknown option 'rope_theta'."),
    ],
)  # fmt: skip
def test_a_misspelt_option_of_the_architecture_names_the_right_one(registries, options, message):
    """Transformers takes any: the run would be one of its default sizes."""
    config = registries.language_decoders.configure("hf_decoder", {"architecture": {"model_type": "llama"} | options})
    with pytest.raises(ConfigError) as caught:
        config.resolved()
    assert message in str(caught.value)
    assert "transformers_version" not in str(caught.value)


@pytest.mark.parametrize(
    "architecture",
    [
        {
            "model_type": "llama",
            "rope_theta": 5e4,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        },  # of version 4
        {"model_type": "gpt2", "hidden_size": 32, "max_position_embeddings": 64},  # gpt2 calls them otherwise
        {"model_type": "gemma4_text", "head_dim": 8},  # which differs by layer, and cannot be asked for as one number
    ],
    ids=lambda value: value["model_type"],
)
def test_older_and_common_names_of_options_are_known(registries, architecture):
    config = registries.language_decoders.configure("hf_decoder", {"architecture": architecture})
    assert config.resolved() == config


def test_what_a_checkpoint_says_besides_is_its_own_affair(registries, tmp_path):
    save(tmp_path, "llama")
    rewrite_config(tmp_path, favourite_colour="blue")
    assert load(registries, tmp_path).dim == 32


@pytest.mark.parametrize("shape", [(0, 32), (1, 32), (3, 32), (2, 3, 32), (2, 0, 32)])
def test_logits_keep_the_shape_of_hidden_states(registries, shape):
    decoder = build(registries, **architecture_of("llama"))
    assert decoder.logits(torch.zeros(shape)).shape == (*shape[:-1], 257)


def test_tensors_that_do_not_fit_are_listed(registries, tmp_path):
    save(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = torch.ones(33)
    tensors["model.layers.2.input_layernorm.weight"] = torch.ones(32)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load(registries, tmp_path)
    assert str(caught.value).splitlines() == [
        f"{tmp_path} does not fit LlamaForCausalLM:",
        "  missing (1):",
        "    model.layers.0.mlp.up_proj.weight",
        "  unexpected (1):",
        "    layers.2.input_layernorm.weight",
        "  misshapen (1):",
        "    model.norm.weight (33,), the model has (32,)",
    ]


def test_neither_an_experiment_nor_a_checkpoint_brings_code(registries, tmp_path):
    save(tmp_path, "llama")
    rewrite_config(tmp_path, auto_map={"AutoModelForCausalLM": "modeling.Evil"}, _attn_implementation="owner/kernel")
    decoder = load(registries, tmp_path)
    assert not {"auto_map", "_attn_implementation"} & decoder.config.architecture.keys()
    assert decoder.model.config._attn_implementation in ("sdpa", "eager")


def test_the_text_tower_of_several_is_read(registries, tmp_path):
    save(tmp_path, "llama")
    text = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "idefics3", "text_config": text}))
    assert load(registries, tmp_path).model.config.model_type == "llama"


def test_a_quantized_checkpoint_is_refused(registries, tmp_path):
    save(tmp_path, "llama")
    rewrite_config(tmp_path, quantization_config={"quant_method": "gptq"})
    with pytest.raises(
        CheckpointError, match="is quantized, which cannot be trained: name the checkpoint that it was made"
    ):
        load(registries, tmp_path)


def test_an_architecture_that_contradicts_the_checkpoint_is_an_error(registries, tmp_path):
    save(tmp_path, "llama")
    assert load(registries, tmp_path, architecture={"model_type": "llama", "hidden_size": 32}).dim == 32
    with pytest.raises(ConfigError, match=r"architecture: hidden_size=64, the checkpoint .* says otherwise: leave the"):
        load(registries, tmp_path, architecture={"model_type": "llama", "hidden_size": 64})


@pytest.mark.parametrize("weights", ["random", "HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_the_known_checkpoints_are_planned_without_network(registries, weights):
    config = registries.language_decoders.configure("hf_decoder", {"weights": weights}).resolved()
    with torch.device("meta"):
        decoder = registries.language_decoders.find("hf_decoder").cls(config)
        native = registries.language_decoders.build("smollm2", {})
    assert sum(p.numel() for p in decoder.parameters()) == sum(p.numel() for p in native.parameters())
    assert (decoder.dim, decoder.max_positions, config.vocab_size) == (576, 8192, 49152)
    assert (decoder.packing, decoder.caching) == ("padded", "recomputed")  # nothing can be tried out on meta


@pytest.mark.parametrize(
    ("kind", "options", "positions"),
    [
        ("llama", {}, 128),
        ("gpt2", {}, 128),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0,
                                       "original_max_position_embeddings": 32}}, 32),
        ("gemma3_text", {"rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0,
                               "original_max_position_embeddings": 32}}}, 32),
        ("mamba", {}, 2**20),
        ("roberta", {"is_decoder": True, "pad_token_id": 1}, 126),
        ("mpt", {"max_seq_len": 64, "d_model": 32, "n_heads": 4, "n_layers": 2}, 64),
        ("gemma3", {"text_config": SMALL | GEMMA}, 128),
    ],
)  # fmt: skip
def test_the_longest_sample_is_what_positions_are_for(registries, kind, options, positions):
    """Up to where rotary frequencies depend on the longest sample of a row: each sample's result is its own."""
    with torch.device("meta"):
        assert build(registries, **architecture_of(kind, **options)).max_positions == positions


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("roberta", {"is_decoder": True, "pad_token_id": 1}),
        ("mpt", {"max_seq_len": 64, "d_model": 32, "n_heads": 4, "n_layers": 2}),
        ("opt", {}),
        ("gpt2", {}),
    ],
)
@torch.no_grad()
def test_the_longest_sample_can_be_read_and_no_longer_one(registries, kind, options):
    decoder = build(registries, **architecture_of(kind, **options))
    longest = decoder.max_positions
    assert logits_of(decoder, random_ids(longest), [longest]).isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        logits_of(decoder, random_ids(longest + 1), [longest + 1])


def test_the_vocabulary_is_the_text_towers(registries):
    options = {"architecture": architecture_of("gemma3", text_config=SMALL | GEMMA)}
    assert registries.language_decoders.configure("hf_decoder", options).vocab_size == 257


def overrides(kind: str) -> tuple[str, str]:
    return (
        "language_decoder.name=hf_decoder",
        f"language_decoder.architecture={json.dumps(architecture_of(kind))}",
    )


@pytest.mark.parametrize("kind", ["llama", "gemma2", "lfm2", "mamba"])
def test_a_model_with_it_is_planned(kind):
    facts = plan(tiny_recipe(*overrides(kind)))
    model = tiny_model(*overrides(kind))
    parameters = sum(p.numel() for p in model.language_decoder.parameters())
    assert facts.parameters["language_decoder"] == parameters
    assert facts.flops_per_sample > 6 * (parameters - 257 * 32) * facts.longest_sample  # the embedding's are none
    assert facts.memory_bytes > 16 * parameters


def test_a_mixture_of_experts_says_that_it_cannot_be_planned():
    with pytest.raises(ConfigError, match="mixtral can be trained, but not planned without weights: "):
        plan(tiny_recipe(*overrides("mixtral")))


def test_a_saved_model_is_loaded_again(tmp_path):
    from nanovlm import VisionLanguageModel

    model = tiny_model(*overrides("lfm2"))
    model.save_pretrained(tmp_path / "model")
    again = VisionLanguageModel.from_pretrained(tmp_path / "model", load_plugins())
    assert again.generate("What is this?", max_new_tokens=5) == model.generate("What is this?", max_new_tokens=5)
