"""Rows for markers, in every decoder that starts from a checkpoint."""

import pytest
import torch
from hf_folder import rewrite_config
from safetensors.torch import load_file
from tiny import model_of
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from nanovlm import CheckpointError, ConfigError, Segments, VisionLanguageModel
from nanovlm.components import TextConfig
from nanovlm.seeding import seeded
from nanovlm.vocabulary import extended, rows_for, with_new_rows

V = 300
MARKED = {"tokenizer": "bytes", "image_format": "idefics3", "extra_tokens": ["<box>"]}  # three markers
VISION = {
    "name": "siglip",
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
both_decoders = pytest.mark.parametrize("name", ["smollm2", "hf_decoder"])
tied_or_not = pytest.mark.parametrize("tied", [True, False])


def checkpoint(folder, tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=tied, attn_implementation="eager",
    )  # fmt: skip
    reference = LlamaForCausalLM(config).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.2)
    reference.save_pretrained(folder)
    return reference


def resolve(registries, name, folder, **options):
    return registries.language_decoders.configure(name, {"weights": str(folder), **options}).resolved()


def load(registries, name, folder, seed=0, **options):
    config = resolve(registries, name, folder, **options)
    with seeded(seed, "language_decoder"):
        decoder = registries.language_decoders.find(name).cls(config)
    decoder.load_pretrained()
    return decoder.eval()


@torch.no_grad()
def logits(decoder, ids: torch.Tensor) -> torch.Tensor:
    return decoder.logits(decoder(decoder.embed(ids), Segments.of([len(ids)])))


@both_decoders
@tied_or_not
def test_words_keep_their_logits_and_markers_get_rows_like_theirs(registries, tmp_path, name, tied):
    reference = checkpoint(tmp_path, tied)
    decoder = load(registries, name, tmp_path, **MARKED)
    assert decoder.config.vocab_size == V + 3
    ids = torch.arange(40) * 7
    found = logits(decoder, ids)
    assert found.shape == (40, V + 3)
    torch.testing.assert_close(found[:, :V], reference(input_ids=ids[None]).logits[0], rtol=1e-4, atol=1e-4)
    new, old = decoder.embed(torch.arange(V + 3)).detach().split((V, 3))[::-1]
    assert new.std() == pytest.approx(float(old.std()), rel=0.3)
    assert new.mean() == pytest.approx(float(old.mean()), abs=0.1)
    assert len(new.unique(dim=0)) == 3
    head = logits(decoder, torch.arange(V, V + 3))[:, V:]
    assert head.isfinite().all()
    assert (head == 0).sum() == 0  # a row of zeros would be no start


@both_decoders
def test_new_rows_come_from_the_components_own_generator(registries, tmp_path, name):
    checkpoint(tmp_path)
    ids = torch.arange(V, V + 3)
    first, again, other = (load(registries, name, tmp_path, seed, **MARKED).embed(ids) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@both_decoders
def test_without_markers_nothing_is_added(registries, tmp_path, name):
    checkpoint(tmp_path)
    assert resolve(registries, name, tmp_path, tokenizer="bytes").vocab_size == V


@both_decoders
def test_the_resolved_options_stay_as_they_are_when_resolved_again(registries, tmp_path, name):
    checkpoint(tmp_path)
    config = resolve(registries, name, tmp_path, **MARKED)
    again = registries.language_decoders.configure(name, config.model_dump()).resolved()
    assert again.model_dump() == config.model_dump()


@both_decoders
def test_whoever_asks_for_the_checkpoints_own_number_of_rows_gets_it(registries, tmp_path, name):
    """The bytes and their markers are fewer: rows to spare."""
    reference = checkpoint(tmp_path)
    plain = resolve(registries, name, tmp_path, tokenizer="bytes")
    asked = {key: getattr(plain, key) for key in ("vocab_size", "architecture") if key in type(plain).model_fields}
    decoder = load(registries, name, tmp_path, **MARKED, **asked)
    assert decoder.config.vocab_size == V
    ids = torch.arange(V)[::9]
    torch.testing.assert_close(logits(decoder, ids), reference(input_ids=ids[None]).logits[0], rtol=1e-4, atol=1e-4)


@both_decoders
@tied_or_not
def test_a_model_with_new_rows_is_saved_and_loaded(tmp_path, name, tied):
    checkpoint(tmp_path / "llama", tied)
    model = model_of(VISION, {"name": name, "weights": str(tmp_path / "llama"), **MARKED})
    model.load_pretrained()
    model.save_pretrained(tmp_path / "saved")
    loaded = VisionLanguageModel.from_pretrained(tmp_path / "saved")
    ids = torch.arange(V + 3)[::9]
    assert torch.equal(logits(loaded.language_decoder, ids), logits(model.language_decoder, ids))
    assert loaded.text.special_ids == model.text.special_ids


@both_decoders
def test_a_checkpoint_that_lacks_other_rows_is_still_refused(registries, tmp_path, name):
    checkpoint(tmp_path)
    rewrite_config(tmp_path, vocab_size=V + 1)
    with pytest.raises(CheckpointError, match="misshapen"):
        load(registries, name, tmp_path, **MARKED)


@both_decoders
def test_adapters_leave_new_rows_as_they_were_drawn(tmp_path, name):
    checkpoint(tmp_path)
    model = model_of(VISION, {"name": name, "weights": str(tmp_path), "lora": {"rank": 2}, **MARKED})
    model.load_pretrained()
    model.train_only(["language_decoder"])
    assert not any(p.requires_grad for n, p in model.language_decoder.named_parameters() if "lora" not in n)


def test_a_head_with_a_bias_gets_longer_too(registries, tmp_path):
    from transformers import PhiConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    reference = AutoModelForCausalLM.from_config(PhiConfig(vocab_size=V, max_position_embeddings=64, **sizes)).eval()
    torch.nn.init.normal_(reference.lm_head.bias)
    reference.save_pretrained(tmp_path)
    assert "lm_head.bias" in load_file(tmp_path / "model.safetensors")
    decoder = load(registries, "hf_decoder", tmp_path, **MARKED)
    ids = torch.arange(V)[::9]
    found, expected = logits(decoder, ids), reference(input_ids=ids[None]).logits[0]
    torch.testing.assert_close(found[:, :V], expected, rtol=1e-4, atol=1e-4)
    mean = reference.lm_head.bias.mean()
    torch.testing.assert_close(decoder.model.lm_head.bias[V:], mean.expand(3), rtol=1e-4, atol=1e-5)  # drawn as zeros


def test_a_model_whose_size_of_vocabulary_stands_elsewhere_is_refused(registries, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gemma3"}')
    with pytest.raises(ConfigError, match="gemma3 takes no further tokens: leave extra_tokens out, and image_format"):
        resolve(registries, "hf_decoder", tmp_path, **MARKED)


def test_the_known_checkpoints_need_no_network_for_markers(registries):
    for name in ("smollm2", "hf_decoder"):
        config = resolve(registries, name, "HuggingFaceTB/SmolLM2-135M", image_format="nanovlm")
        assert config.vocab_size == 49153


def test_new_rows_have_each_columns_mean_and_spread():
    torch.manual_seed(0)
    old = torch.randn(500, 4) * torch.tensor([0.1, 1.0, 2.0, 0.0]) + torch.tensor([5.0, 0.0, -1.0, 3.0])
    grown = with_new_rows(old, torch.randn(2500, 4) * 0.02)
    assert torch.equal(grown[:500], old)
    torch.testing.assert_close(grown[500:].mean(0), old.mean(0), atol=0.1, rtol=0.1)
    torch.testing.assert_close(grown[500:].std(0), old.std(0), atol=1e-6, rtol=0.1)
    half = with_new_rows(old.bfloat16(), torch.randn(501, 4))
    assert half.dtype == torch.bfloat16


def test_only_tables_that_lack_just_the_markers_are_extended():
    config = TextConfig(extra_tokens=["<a>", "<b>"])
    tables = {"embedding": torch.randn(6, 3)}
    found = extended({name: torch.randn(4, 3) for name in ("old.embedding", "other")}, tables, config, lambda n: n[4:])
    assert {name: len(tensor) for name, tensor in found.items()} == {"old.embedding": 6, "other": 4}
    short = {"embedding": torch.randn(3, 3)}
    assert extended(short, tables, config)["embedding"] is short["embedding"]
    assert rows_for(config, 4) == 6
    assert rows_for(config, 4, asked=6) == 6
    assert rows_for(config, 4, asked=4) == 4
