import json

import pytest
import torch
from hf_folder import rewrite_config
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from nanovlm import CheckpointError, ConfigError, Segments
from nanovlm.data.conversation import Tokens
from nanovlm.data.packing import Example, pack_row
from nanovlm.generation import generate_ids

SMALL = {"vocab_size": 257, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 128}
HEADS = {  # the head shapes of the 135M, the 360M and the 1.7B, at a smaller width
    "9/3": {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72},
    "15/5": {"num_attention_heads": 15, "num_key_value_heads": 5, "hidden_size": 60},
    "32/32": {"num_attention_heads": 32, "num_key_value_heads": 32, "hidden_size": 64},
}
ROPE = {"rope_theta": 20_000.0, "rope_type": "default"}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def llama(**options) -> LlamaForCausalLM:
    """A Llama with weights far from their initial values, its norms included."""
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL | HEADS["9/3"] | {"rope_parameters": ROPE, "attn_implementation": "eager"} | options)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def resolve(registries, folder, **options):
    options = {"weights": str(folder), "tokenizer": "bytes", **options}
    return registries.language_decoders.configure("smollm2", options).resolved()


def load(registries, folder):
    decoder = registries.language_decoders.find("smollm2").cls(resolve(registries, folder))
    decoder.load_pretrained()
    return decoder.eval()


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def relative_error(decoder, reference: LlamaForCausalLM) -> float:
    """Of the logits of two sequences, which ours reads packed."""
    ids = random_ids(2, 50)
    hidden = decoder(decoder.embed(ids.flatten()), Segments.of([50, 50]))
    expected = reference(input_ids=ids).logits.flatten(0, 1)
    return float((decoder.logits(hidden) - expected).norm() / expected.norm())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_logits_equal_transformers(registries, tmp_path, heads, tied):
    reference = llama(**heads, tie_word_embeddings=tied)
    reference.save_pretrained(tmp_path)
    assert relative_error(load(registries, tmp_path), reference) < 1e-5


def test_norm_epsilon_comes_from_the_checkpoint(registries, tmp_path):
    reference = llama(rms_norm_eps=0.1)
    reference.save_pretrained(tmp_path)
    assert relative_error(load(registries, tmp_path), reference) < 1e-5


def test_the_layout_of_transformers_4_is_read_as_well(registries, tmp_path):
    reference = llama()
    reference.save_pretrained(tmp_path)
    rewrite_config(tmp_path, rope_parameters=None, head_dim=None, rope_theta=20_000.0, rope_scaling=None)
    assert relative_error(load(registries, tmp_path), reference) < 1e-5


def test_what_a_config_leaves_out_is_as_transformers_reads_it(registries, tmp_path):
    reference = llama(num_key_value_heads=9, rope_parameters={"rope_theta": 10_000.0, "rope_type": "default"})
    reference.save_pretrained(tmp_path)
    left_out = ("rope_parameters", "num_key_value_heads", "tie_word_embeddings", "rms_norm_eps", "head_dim")
    rewrite_config(tmp_path, **dict.fromkeys(left_out))
    assert LlamaForCausalLM.from_pretrained(tmp_path).config.rms_norm_eps == 1e-6
    assert relative_error(load(registries, tmp_path), reference) < 1e-5


def test_a_config_that_leaves_everything_out_is_llamas(registries, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    config, reference = resolve(registries, tmp_path), LlamaConfig()
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"):  # fmt: skip
        assert getattr(config, key) == getattr(reference, key)
    assert config.width_of_head == reference.head_dim
    assert config.rope_theta == reference.rope_parameters["rope_theta"]


def test_logits_equal_transformers_at_true_size(registries, tmp_path):
    """The architecture of HuggingFaceTB/SmolLM2-135M, with random weights."""
    torch.manual_seed(0)
    rope = {"rope_theta": 100_000.0, "rope_type": "default"}
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters=rope,
    )  # fmt: skip
    reference = LlamaForCausalLM(config).eval()
    for name, parameter in reference.named_parameters():
        if "norm" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    reference.save_pretrained(tmp_path)
    decoder = load(registries, tmp_path)
    assert count(decoder) == 134_515_008
    assert decoder.config.model_dump(exclude={"weights", "tokenizer"}) == resolve(
        registries, "HuggingFaceTB/SmolLM2-135M"
    ).model_dump(exclude={"weights", "tokenizer"})
    assert relative_error(decoder, reference) < 1e-5


@pytest.mark.parametrize(
    ("size", "parameters", "heads", "theta"),
    [
        ("135M", 134_515_008, (9, 3), 100_000),
        ("360M", 361_821_120, (15, 5), 100_000),
        ("1.7B", 1_711_376_384, (32, 32), 130_000),
    ],
)
@pytest.mark.parametrize("kind", ["", "-Instruct"])
def test_the_architecture_of_every_smollm2_is_known_without_network(registries, size, parameters, heads, theta, kind):
    config = resolve(registries, f"HuggingFaceTB/SmolLM2-{size}{kind}")
    with torch.device("meta"):
        assert count(registries.language_decoders.find("smollm2").cls(config)) == parameters
    assert (config.num_attention_heads, config.num_key_value_heads) == heads
    assert (config.rope_theta, config.max_position_embeddings, config.width_of_head) == (theta, 8192, 64)


def test_rotations_stay_exact_at_the_last_positions(registries):
    """An angle's error grows with the position, so the frequencies have to be rounded as the original's."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_theta": 100_000.0, "rope_type": "default"}
    config = LlamaConfig(hidden_size=64, num_attention_heads=1, max_position_embeddings=8192, rope_parameters=rope)
    expected = LlamaRotaryEmbedding(config)(torch.empty(0), torch.arange(8192)[None])
    sizes = {"hidden_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1}
    decoder = registries.language_decoders.build("smollm2", {**sizes, "vocab_size": 8})
    for mine, theirs in zip((decoder.cos, decoder.sin), expected, strict=True):
        torch.testing.assert_close(mine, theirs[0, :, :32], rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", ["transformers 4", "transformers 5", "length beside the rope", "length left out"])
def test_llama3_scaling_equals_transformers_beyond_the_pretrained_length(registries, tmp_path, layout):
    """Sequences of 50 tokens, after a pretraining on 32; frequencies of heads 16 wide fall into all three bands."""
    length = {"original_max_position_embeddings": 32}
    rope, heads = (
        {**LLAMA3, "rope_theta": 100.0},
        {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
    )
    changes = {
        "transformers 4": {"rope_parameters": None, "rope_theta": 100.0, "rope_scaling": {**LLAMA3, **length}},
        "transformers 5": {"rope_parameters": {**rope, **length}},
        "length beside the rope": {"rope_parameters": rope, **length},
        "length left out": {"rope_parameters": rope, "max_position_embeddings": 64},
    }
    llama(**heads).save_pretrained(tmp_path)
    rewrite_config(tmp_path, **changes[layout])
    reference = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert reference.config.rope_parameters["rope_type"] == "llama3"
    decoder = load(registries, tmp_path)
    assert relative_error(decoder, reference) < 1e-5
    unscaled = type(decoder)(decoder.config.model_copy(update={"rope_scaling": None}))
    decoder.cos, decoder.sin = unscaled.cos, unscaled.sin
    assert relative_error(decoder, reference) > 1e-3  # the scaling is no small matter here


def test_llama3s_own_frequencies_equal_transformers(registries):
    """Of Llama 3.2's 1B."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_type"}
    scaling |= {"factor": 32.0, "original_max_position_embeddings": 8192}
    sizes = {"hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500_000.0}
    config = registries.language_decoders.configure("smollm2", {**sizes, "rope_scaling": scaling})
    sizes.pop("rope_theta")
    rope = {**scaling, "rope_type": "llama3", "rope_theta": 500_000.0}
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**sizes, rope_parameters=rope))
    plain = 1 / 500_000.0 ** (torch.arange(0, 64, 2) / 64)
    torch.testing.assert_close(config.rope_scaling(plain), expected, rtol=1e-6, atol=0)


def test_bands_in_the_wrong_order_are_named(registries):
    scaling = {"factor": 8, "low_freq_factor": 4, "high_freq_factor": 1, "original_max_position_embeddings": 16}
    with pytest.raises(ConfigError, match=r"rope_scaling: low_freq_factor must be less than high_freq_factor"):
        registries.language_decoders.configure("smollm2", {"rope_scaling": scaling})


def test_a_scaling_that_lacks_a_number_is_named(registries, tmp_path):
    llama().save_pretrained(tmp_path)
    rewrite_config(tmp_path, rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0})
    with pytest.raises(ConfigError, match=r"config\.json\.rope_scaling\.low_freq_factor is missing"):
        resolve(registries, tmp_path)


def test_heads_may_be_wider_than_their_share(registries, tmp_path):
    reference = llama(head_dim=12)  # 9 heads: 108 wide in a model of 72
    reference.save_pretrained(tmp_path)
    assert relative_error(load(registries, tmp_path), reference) < 1e-5


def test_shards_are_read_together(registries, tmp_path):
    reference = llama(tie_word_embeddings=False)
    reference.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert relative_error(load(registries, tmp_path), reference) < 1e-5


def add_tensors(folder, **tensors: torch.Tensor) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file) | tensors, file)


def test_a_tied_checkpoint_may_hold_the_head_too(registries, tmp_path):
    reference = llama(tie_word_embeddings=True)
    reference.save_pretrained(tmp_path)
    add_tensors(tmp_path, **{"lm_head.weight": reference.model.embed_tokens.weight.detach().clone()})
    assert relative_error(load(registries, tmp_path), reference) < 1e-5


def test_a_tied_checkpoint_with_another_head_is_refused(registries, tmp_path):
    llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    add_tensors(tmp_path, **{"lm_head.weight": torch.zeros(257, 72)})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is not the embedding again, though config\.json says"):
        load(registries, tmp_path)


def test_frequencies_among_the_weights_are_left_out(registries, tmp_path):
    """As Llama 2's checkpoints have them."""
    reference = llama()
    reference.save_pretrained(tmp_path)
    names = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(2)]
    add_tensors(tmp_path, **{name: torch.ones(4) for name in names})
    assert relative_error(load(registries, tmp_path), reference) < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_greedy_answers_equal_transformers(registries, tmp_path, tied):
    from tiny import model_of

    reference = llama(tie_word_embeddings=tied)
    reference.save_pretrained(tmp_path)
    model = model_of(
        {"name": "siglip", "image_size": 16, "patch_size": 4, "hidden_size": 16, "num_attention_heads": 2},
        {"name": "smollm2", "weights": str(tmp_path), "tokenizer": "bytes"},
    )
    model.language_decoder.load_pretrained()
    model.text.stop_ids = frozenset({-1})
    prompts = [random_ids(length) for length in (3, 17, 40)]
    no_pictures = torch.empty(0, 3, 16, 16, dtype=torch.uint8)
    examples = [Example(Tokens(ids.tolist(), [False] * len(ids), []), no_pictures) for ids in prompts]
    answers = generate_ids(model, pack_row(examples, model.num_image_tokens), 20)
    options = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    for ids, answer in zip(prompts, answers, strict=True):
        whole = reference.generate(ids[None], attention_mask=torch.ones_like(ids[None]), **options)
        assert answer == whole[0, len(ids) :].tolist()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_parameters": {**ROPE, "partial_rotary_factor": 0.25}}, "partial_rotary_factor=0.25"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0}}, "rope_type='yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"rope_type": "dynamic", "factor": 8.0}}, "rope_type='dynamic'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear'"),
        ({"rope_parameters": ROPE, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_cannot_represent_is_refused_by_name(registries, tmp_path, change, named):
    llama().save_pretrained(tmp_path)
    rewrite_config(tmp_path, **change)
    with pytest.raises(CheckpointError, match=f"this decoder cannot represent {named}; hf_decoder reads other"):
        load(registries, tmp_path)


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3", "gemma2", "gpt2", None])
def test_an_architecture_with_windows_biases_or_more_norms_is_refused_by_name(registries, tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "hidden_size": 8, "num_attention_heads": 2}))
    with pytest.raises(CheckpointError, match=f"type {kind!r}, not of the Llama architecture; hf_decoder reads"):
        load(registries, tmp_path)


def test_an_unexpected_bias_among_the_weights_is_refused(registries, tmp_path):
    llama(attention_bias=True).save_pretrained(tmp_path)
    rewrite_config(tmp_path, attention_bias=None)
    with pytest.raises(CheckpointError, match=r"unexpected \(8\):\n    blocks\.0\.attention\.key\.bias"):
        load(registries, tmp_path)


def test_a_norm_of_queries_and_keys_is_refused(registries, tmp_path):
    llama().save_pretrained(tmp_path)
    names = [f"model.layers.{i}.self_attn.{which}_norm.weight" for i in range(2) for which in "qk"]
    add_tensors(tmp_path, **{name: torch.ones(8) for name in names})
    with pytest.raises(CheckpointError, match=r"unexpected \(4\):\n    blocks\.0\.attention\.k_norm\.weight"):
        load(registries, tmp_path)


def test_a_config_with_a_wrong_value_is_named(registries, tmp_path):
    llama().save_pretrained(tmp_path)
    rewrite_config(tmp_path, hidden_size="wide")
    with pytest.raises(ConfigError, match=r"config\.json\.hidden_size='wide': input should be a valid integer"):
        resolve(registries, tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_size": 20, "num_attention_heads": 3, "num_key_value_heads": 3},
        {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 3},
        {"hidden_size": 12, "num_attention_heads": 4, "num_key_value_heads": 4},  # heads of 3: no rotary halves
        {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 5},
    ],
    ids=str,
)
def test_heads_that_cannot_work_are_named(registries, options):
    with pytest.raises(ConfigError, match=f"num_attention_heads={options['num_attention_heads']} must divide"):
        registries.language_decoders.build("smollm2", options)
