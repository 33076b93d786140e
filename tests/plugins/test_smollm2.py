import json

import pytest
import torch
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


def llama(**options) -> LlamaForCausalLM:
    """A Llama with weights far from their initial values, its norms included."""
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL | HEADS["9/3"] | {"rope_parameters": ROPE, "attn_implementation": "eager"} | options)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def load(registries, folder):
    options = {"weights": str(folder), "tokenizer": "bytes"}
    config = registries.language_decoders.configure("smollm2", options).resolved()
    decoder = registries.language_decoders.find("smollm2").cls(config)
    decoder.load_pretrained()
    return decoder.eval()


def rewrite_config(folder, **changes) -> None:
    """Change ``config.json``: a value of None takes the key out."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


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


def test_a_tied_checkpoint_may_hold_the_head_too(registries, tmp_path):
    from safetensors.torch import load_file, save_file

    reference = llama(tie_word_embeddings=True)
    reference.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors"
    )
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
        ({"head_dim": 16}, "head_dim=16"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}}, "rope_type='llama3'"),
        ({"rope_parameters": None, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type='llama3'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear'"),
        ({"rope_parameters": ROPE, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_cannot_represent_is_refused_by_name(registries, tmp_path, change, named):
    llama().save_pretrained(tmp_path)
    rewrite_config(tmp_path, **change)
    with pytest.raises(CheckpointError, match=f"this decoder cannot represent .*{named}"):
        load(registries, tmp_path)


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3", "gemma2"])
def test_an_architecture_with_windows_biases_or_more_norms_is_refused_by_name(registries, tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "hidden_size": 8, "num_attention_heads": 2}))
    with pytest.raises(CheckpointError, match=f"type '{kind}', not of the Llama architecture"):
        load(registries, tmp_path)


def test_an_unexpected_bias_among_the_weights_is_refused(registries, tmp_path):
    llama(attention_bias=True).save_pretrained(tmp_path)
    rewrite_config(tmp_path, attention_bias=None)
    with pytest.raises(CheckpointError, match=r"unexpected \(8\):\n    blocks\.0\.attention\.key\.bias"):
        load(registries, tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_size": 20, "num_attention_heads": 3, "num_key_value_heads": 3},
        {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 3},
        {"hidden_size": 12, "num_attention_heads": 4, "num_key_value_heads": 4},  # heads of 3: no rotary halves
    ],
    ids=str,
)
def test_heads_that_cannot_work_are_named(registries, options):
    with pytest.raises(ConfigError, match=f"num_attention_heads={options['num_attention_heads']} must divide"):
        registries.language_decoders.build("smollm2", options)
