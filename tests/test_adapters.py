import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import example, model_of, tiny_model, tiny_recipe
from torch import nn
from versions import older

from nanovlm import CheckpointError, ConfigError, Turn, VisionLanguageModel, train
from nanovlm.adapters import is_adapter
from nanovlm.data.packing import pack_row
from nanovlm.planning import plan
from nanovlm.weights import tied_once

VISION = {
    "name": "siglip",
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SIZES = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 257}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA = {"model_type": "llama", **SIZES, **HEADS, "tie_word_embeddings": True}
DECODERS = {
    "smollm2": {"name": "smollm2", **SIZES, **HEADS},
    "hf_decoder": {"name": "hf_decoder", "architecture": LLAMA},
}
LORA = {"rank": 3, "alpha": 5}
both_decoders = pytest.mark.parametrize("decoder", DECODERS)


def build(decoder: str = "smollm2", seed: int = 0, lora: dict | None = LORA) -> VisionLanguageModel:
    return model_of(VISION, DECODERS[decoder] | {"lora": lora}, seed)


def trained(decoder: str = "smollm2", lora: dict = LORA) -> VisionLanguageModel:
    """A model whose adapters change what it computes."""
    model = build(decoder, lora=lora)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.trainable("language_decoder"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
    return model


def row_of(model: VisionLanguageModel):
    turns = [[Turn("What is this?", "a cat")], [Turn("And this?", "a very small dog")]]
    return pack_row([example(model, each, 1, seed=i) for i, each in enumerate(turns)], model.num_image_tokens)


@torch.no_grad()
def logits(model: VisionLanguageModel) -> torch.Tensor:
    return model.language_decoder.logits(model.hidden(row_of(model)))


def linear_layers(model: VisionLanguageModel) -> dict[str, nn.Linear]:
    """Those in the blocks of a decoder without adapters."""
    decoder = model.language_decoder
    inside = {id(module) for block in decoder.blocks for module in block.modules()}
    found = {name: module for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    return {name: module for name, module in found.items() if id(module) in inside}


@both_decoders
def test_a_layer_trains_its_rank_times_its_inputs_and_outputs(decoder):
    layers = linear_layers(build(decoder, lora=None))
    assert len(layers) == 2 * 7
    sizes = sum(3 * (layer.in_features + layer.out_features) for layer in layers.values())
    assert sum(parameter.numel() for parameter in build(decoder).trainable("language_decoder")) == sizes


def test_only_the_layers_that_are_named_are_adapted():
    model = build(lora=LORA | {"targets": ["query", "down"]})
    names = [name for name in tied_once(model.language_decoder) if is_adapter(name)]
    assert {name.split(".")[3] for name in names} == {"query", "down"}
    parameters = sum(parameter.numel() for parameter in model.trainable("language_decoder"))
    assert parameters == 2 * 3 * (24 + 24 + 48 + 24)


def test_a_plan_counts_the_adapters_and_nothing_else_of_the_decoder():
    others = ["training.learning_rate.vision_encoder=0", "training.learning_rate.projector=0"]
    with_lora, without = (plan(tiny_recipe(*more, *others)) for more in (["language_decoder.lora.rank=3"], []))
    adapters = with_lora.trained_parameters
    assert adapters == sum(p.numel() for p in tiny_model("language_decoder.lora.rank=3").trainable("language_decoder"))
    assert with_lora.parameters["language_decoder"] == without.parameters["language_decoder"] + adapters
    assert without.trained_parameters == without.parameters["language_decoder"]


def test_of_other_components_everything_is_trained():
    model = build()
    for role in ("vision_encoder", "projector"):
        assert [id(p) for p in model.trainable(role)] == [id(p) for p in getattr(model, role).parameters()]
    plain = build(lora=None)
    assert [id(p) for p in plain.trainable("language_decoder")] == [id(p) for p in plain.language_decoder.parameters()]


@both_decoders
def test_all_else_has_the_same_weights_bit_for_bit(decoder):
    plain, adapted = (tied_once(build(decoder, seed=3, lora=lora)) for lora in (None, LORA))
    assert [name for name in adapted if not is_adapter(name)] == list(plain)
    assert all(tensor.equal(adapted[name]) for name, tensor in plain.items())


@both_decoders
def test_adapters_change_nothing_before_they_are_trained(decoder):
    assert logits(build(decoder)).equal(logits(build(decoder, lora=None)))
    assert not torch.allclose(logits(trained(decoder)), logits(build(decoder)), rtol=0.1)


def test_adapters_are_drawn_from_the_seed():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (build(seed=seed).trainable("language_decoder") for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(before)
    assert all(one.equal(two) for one, two in zip(first, again, strict=True))
    assert not any(one.equal(two) for one, two in zip(first[::2], other[::2], strict=True))  # A of each layer
    assert not any(one.any() for one in first[1::2])  # B


@both_decoders
def test_the_adapted_model_is_the_one_with_the_products_added_to_its_weights(decoder):
    adapted, plain = trained(decoder), build(decoder, lora=None)
    tensors = tied_once(adapted.language_decoder)
    with torch.no_grad():
        for name, layer in linear_layers(plain).items():
            a, b = (tensors[f"{name}.lora_{each}.default.weight"] for each in "AB")
            layer.weight += 5 / 3 * b @ a  # (out, rank) @ (rank, in)
    torch.testing.assert_close(logits(adapted), logits(plain), rtol=1e-4, atol=1e-5)


@both_decoders
def test_training_changes_the_adapters_only(decoder):
    model = build(decoder).train()
    before = {name: tensor.detach().clone() for name, tensor in tied_once(model).items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(2):  # in the first step B is 0, and so is the gradient of A
        model(row_of(model)).backward()
        optimizer.step()
    changed = {name for name, tensor in tied_once(model).items() if not tensor.equal(before[name])}
    own = {name for name in tied_once(model) if name.startswith("language_decoder.")}
    assert changed & own == {name for name in own if is_adapter(name)}
    assert "projector.linear.weight" in changed  # gradients pass through what is frozen


def test_a_run_trains_the_adapters_and_saves_them(tmp_path):
    recipe = tiny_recipe("language_decoder.lora.rank=3")
    train(recipe.experiment, tmp_path / "run")
    before = tied_once(VisionLanguageModel(recipe.blueprint, recipe.experiment.seed).language_decoder)
    after = tied_once(VisionLanguageModel.from_pretrained(tmp_path / "run" / "model").language_decoder)
    changed = {name for name, tensor in after.items() if not tensor.equal(before[name])}
    assert changed == {name for name in after if is_adapter(name)}


def test_dropout_is_for_training():
    model = trained(lora=LORA | {"dropout": 0.5})
    assert logits(model).equal(logits(trained()))
    model.train()
    assert not logits(model).equal(logits(model))


@both_decoders
def test_a_saved_model_comes_back_bit_for_bit(decoder, tmp_path):
    model = trained(decoder)
    model.save_pretrained(tmp_path / "model")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert {name for name in saved if not is_adapter(name)} == tied_once(build(decoder, lora=None)).keys()
    loaded = VisionLanguageModel.from_pretrained(tmp_path / "model")
    assert loaded.blueprint.language_decoder.config.lora == model.blueprint.language_decoder.config.lora
    assert logits(loaded).equal(logits(model))


@both_decoders
def test_adapters_that_a_saved_model_lacks_are_missing(decoder, tmp_path):
    trained(decoder).save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    gone = sorted(name for name in tensors if is_adapter(name))[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, file)
    with pytest.raises(CheckpointError, match=rf"missing \(1\):\n    {gone}$"):
        VisionLanguageModel.from_pretrained(tmp_path / "model")


def test_adapters_that_the_config_does_not_name_are_unexpected(tmp_path):
    trained().save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["language_decoder"]["lora"] = None
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"unexpected \(28\):\n    language_decoder\.blocks\.0\..*lora_A"):
        VisionLanguageModel.from_pretrained(tmp_path / "model")


def write_llama(folder, **options):
    """A checkpoint of transformers that both decoders can load."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, max_position_embeddings=512, **options)).save_pretrained(folder)
    return folder


def pretrained(decoder: str, folder, lora: dict | None) -> VisionLanguageModel:
    choice = {"name": decoder, "weights": str(folder), "tokenizer": "bytes", "lora": lora}
    model = model_of(VISION, choice)
    model.load_pretrained()
    return model


@both_decoders
@pytest.mark.parametrize("tied", [True, False])
def test_a_pretrained_checkpoint_is_loaded_under_the_adapters(decoder, tied, tmp_path):
    folder = write_llama(tmp_path / "llama", tie_word_embeddings=tied)
    adapted, plain = pretrained(decoder, folder, LORA), pretrained(decoder, folder, None)
    assert logits(adapted).equal(logits(plain))
    assert not logits(adapted).equal(logits(model_of(VISION, adapted.blueprint.language_decoder.dump())))
    adapted.save_pretrained(tmp_path / "model")
    assert logits(VisionLanguageModel.from_pretrained(tmp_path / "model")).equal(logits(plain))


@both_decoders
def test_what_a_pretrained_checkpoint_lacks_is_still_listed(decoder, tmp_path):
    file = write_llama(tmp_path / "llama", tie_word_embeddings=True) / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    name = "blocks.0.attention.query.weight" if decoder == "smollm2" else "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(CheckpointError, match=rf"missing \(1\):\n    {name}$"):
        pretrained(decoder, tmp_path / "llama", LORA)


def test_a_pretrained_checkpoint_brings_no_adapters(tmp_path):
    """Of another rank, or by another library: they would be taken for the ones that are to be trained here."""
    file = write_llama(tmp_path / "llama", tie_word_embeddings=True) / "model.safetensors"
    name = "model.layers.0.self_attn.q_proj.lora_A.default.weight"
    save_file(load_file(file) | {name: torch.zeros(3, 24)}, file, metadata={"format": "pt"})
    message = r"unexpected \(1\):\n    blocks\.0\.attention\.query\.lora_A\.default\.weight$"
    with pytest.raises(CheckpointError, match=message):
        pretrained("smollm2", tmp_path / "llama", LORA)


def test_a_borrowed_model_with_trained_adapters_still_packs_and_caches():
    decoder = trained("hf_decoder").language_decoder
    decoder.weights_loaded()
    assert (decoder.packing, decoder.caching) == ("padded", "kept")


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    message = r'language_decoder: lora needs the library peft \(.*\): pip install "nanovlm\[lora\]"'
    with pytest.raises(ConfigError, match=message):
        build()
    build(lora=None)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_target_that_no_layer_has_names_the_right_one(device):
    with pytest.raises(ConfigError) as caught, torch.device(device):
        build(lora={"targets": ["value", "quary"]})
    assert str(caught.value) == (
        "language_decoder: lora.targets: unknown linear layer 'quary'. Did you mean 'query'?\n"
        "  Known here: down, gate, key, output, query, up, value"
    )


def test_a_decoder_without_linear_layers_cannot_be_adapted():
    gpt2 = {"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 4, "vocab_size": 257}
    with pytest.raises(ConfigError, match=r"^language_decoder: lora: no block has a linear layer .* leave lora out"):
        model_of(VISION, {"name": "hf_decoder", "architecture": gpt2, "lora": {}})


@pytest.mark.skipif(older("transformers", than="5.16"), reason="its Mamba calls all of its layers")
def test_a_layer_that_is_never_called_is_not_adapted_in_vain():
    mamba = {"model_type": "mamba", **SIZES, "state_size": 4}
    message = r"an adapter at dt_proj would do nothing.*; name others, targets: \[in_proj, out_proj, x_proj\]$"
    with pytest.raises(ConfigError, match=message):
        model_of(VISION, {"name": "hf_decoder", "architecture": mamba, "lora": {}})
    with pytest.raises(ConfigError, match=r"an adapter at dt_proj would do nothing.*; name other targets$"):
        model_of(VISION, {"name": "hf_decoder", "architecture": mamba, "lora": {"targets": ["dt_proj"]}})
    model = model_of(VISION, {"name": "hf_decoder", "architecture": mamba, "lora": {"targets": ["in_proj"]}})
    assert len(model.trainable("language_decoder")) == 2 * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"language_decoder\.lora\.rank=0: input should be greater than or equal to 1\n  rank: The rows"),
        ({"alpha": 0}, r"language_decoder\.lora\.alpha=0(\.0)?: input should be greater than 0\n  alpha: What the"),
        ({"dropout": 1}, r"language_decoder\.lora\.dropout=1(\.0)?: input should be less than 1\n  dropout: The share"),
        ({"targets": "query"}, r"language_decoder\.lora\.targets='query': input should be a valid list\n  targets: "),
        ({"r": 4}, r"language_decoder\.lora: unknown option 'r'\.\n  Known here: alpha, dropout, rank, targets"),
    ],
    ids=str,
)
def test_options_that_cannot_work_say_why(options, message):
    with pytest.raises(ConfigError, match=message):
        build(lora=options)


def test_adapters_that_would_never_be_trained_are_refused():
    recipe = tiny_recipe("language_decoder.lora.rank=3", "training.learning_rate.language_decoder=0")
    message = (
        r"^training\.learning_rate\.language_decoder=0: the decoder's adapters would never be trained; "
        r"set the adapters' learning rate here, for example 1e-4, or leave language_decoder\.lora out$"
    )
    with pytest.raises(ConfigError, match=message):
        plan(recipe)
