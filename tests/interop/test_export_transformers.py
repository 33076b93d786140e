"""What transformers alone makes of an exported folder."""

import json
import re

import pytest
import torch
from exporting import (
    IDEFICS3,
    LLAMA3,
    LORA,
    VOCAB,
    beyond_rounding,
    borrowed,
    conversations,
    export,
    load,
    our_logits,
    picture,
    stirred,
    their_answer,
    their_logits,
)
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from versions import older

from nanovlm import CheckpointError, ConfigError, VisionLanguageModel, load_plugins
from nanovlm.blueprint import Blueprint
from nanovlm.data.images import to_tensor
from nanovlm.data.tokenizer import byte_tokenizer
from nanovlm.experiment import Named
from nanovlm.interop.idefics3 import check_positions, parts_of, to_idefics3
from nanovlm.interop.processor import processor_of

MODELS = {
    "tied": (),
    "untied": ("language_decoder.tie_word_embeddings=false",),
    "lora": (LORA,),
    "untied lora": (LORA, "language_decoder.tie_word_embeddings=false"),
    "llama3 rope": (LLAMA3,),
    "wide heads": ("language_decoder.head_dim=8",),
    "no shuffle": ("projector.factor=1",),
    "factor 4": ("projector.factor=4",),
    "one key for all": ("language_decoder.num_key_value_heads=1",),
    "a rest of the picture": ("vision_encoder.image_size=24", "vision_encoder.patch_size=6"),
    "rows to spare": ("language_decoder.vocab_size=300",),
    "idefics3": IDEFICS3,
    "hf_decoder": (borrowed(),),
    "hf_decoder, untied, with biases": (borrowed("tie_word_embeddings: false, attention_bias: true"),),
    "hf_decoder, lora": (borrowed(lora="{rank: 3}"),),
}
every_model = pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS.keys())


def blueprint_of(**options: str) -> Blueprint:
    """The baseline's components."""
    names = {"vision_encoder": "siglip", "projector": "pixel_shuffle", "language_decoder": "smollm2"}
    choices = {role: Named.model_validate({"name": name, **options}) for role, name in names.items()}
    return Blueprint.of(choices, load_plugins())


@every_model
def test_transformers_gives_the_same_logits(tmp_path, overrides):
    model = stirred(*overrides)
    examples = conversations(model, VOCAB)
    expected = our_logits(model, examples)  # of the adapters beside the weights
    exported = export(model, tmp_path / "out")
    rows = model.blueprint.language_decoder.config.vocab_size
    for ours, theirs in zip(expected, their_logits(load(tmp_path / "out"), examples), strict=True):
        torch.testing.assert_close(theirs[:, :rows], ours, atol=1e-4, rtol=0)
    assert exported.logits < 1e-4


def test_pixels_may_stay_as_they_are(tmp_path):
    model = stirred("vision_encoder.image_mean=0.0", "vision_encoder.image_std=1.0")
    examples = conversations(model, VOCAB)
    exported = export(model, tmp_path / "out")
    theirs = their_logits(load(tmp_path / "out"), examples, mean=0.0, std=1.0)
    for ours, logits in zip(our_logits(model, examples), theirs, strict=True):
        torch.testing.assert_close(logits[:, :VOCAB], ours, atol=1e-4, rtol=0)
    assert "a picture that is all of the colour (0, 0, 0) is taken for padding, and refused" in exported.differs


@every_model
def test_it_comes_back_as_it_was(tmp_path, overrides):
    model = stirred(*overrides)
    export(model, tmp_path / "out")
    again = VisionLanguageModel.from_pretrained(tmp_path / "out")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(again.state_dict()[name].equal(tensor) for name, tensor in model.state_dict().items())
    assert again.blueprint.parts == model.blueprint.parts
    assert len(again.text.tokenizer) == len(model.text.tokenizer)
    assert again.generate("What?", [picture(20, 30)], 8) == model.generate("What?", [picture(20, 30)], 8)
    export(again, tmp_path / "again")
    files = [tmp_path / name / "model.safetensors" for name in ("out", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_tokens_that_were_added_are_never_said(tmp_path):
    exported = export(stirred("language_decoder.tie_word_embeddings=false"), tmp_path / "out")
    assert exported.added == ("<fake_token_around_image>", "<image>", "<end_of_utterance>")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    head = tensors["lm_head.weight"]
    head.zero_()
    head[VOCAB], head[VOCAB + 1] = 1, -1  # so one of the two is above all others, whatever the hidden state
    save_file(tensors, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    loaded = load(tmp_path / "out")
    assert loaded.model.generation_config.suppress_tokens == [VOCAB, VOCAB + 1, VOCAB + 2]
    asked = {"input_ids": torch.tensor([[1, 2, 3]]), "max_new_tokens": 20, "eos_token_id": None}
    assert loaded.model.generate(**asked)[0, 3:].max() < VOCAB
    loaded.model.generation_config.suppress_tokens = None
    assert loaded.model.generate(**asked)[0, 3:].min() >= VOCAB  # or the test would show nothing


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (30, 90), (128, 32), (7, 5)], ids=str)
def test_a_model_trained_with_its_image_format_answers_alike_from_end_to_end(tmp_path, size):
    model = stirred(*IDEFICS3)
    exported = export(model, tmp_path / "out")
    assert beyond_rounding(exported) == []
    assert exported.added == ("<image>", "<end_of_utterance>")
    if exported.differs:  # only of an older transformers
        return
    loaded = load(tmp_path / "out")
    images = [picture(*size), picture(20, 16, seed=1)]
    for asked in ([], images[:1], images):
        assert their_answer(loaded, "What is it?", asked) == model.generate("What is it?", asked, 12)


def test_of_another_model_it_is_said_what_differs(tmp_path):
    exported = export(stirred(), tmp_path / "out")
    (words,) = beyond_rounding(exported)  # the tokens alone: a stock processor can be told to resize once
    question, theirs, ours = words.split("\n")
    marks = "<fake_token_around_image> < g l o b a l - i m g > <image> x 4 <fake_token_around_image>"
    assert question == "a question about one picture becomes 59 tokens, and in nanovlm 45:"
    assert theirs.startswith(f"  transformers: {marks} Q u e s t i o n : ")
    assert ours.startswith("  nanovlm: <image> x 4 Q u e s t i o n : ")
    readme = (tmp_path / "out" / "README.md").read_text()
    assert all(line.strip() in readme for line in (question, theirs, ours))
    assert any(question in line for line in exported.lines)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(16, 16), (40, 30), (100, 25), (5, 9)], ids=str)
def test_the_processor_makes_the_same_pixels(tmp_path, size, resample):
    model = tiny_model(f"vision_encoder.resample={resample}")
    assert not any(line.startswith("a picture") for line in beyond_rounding(export(model, tmp_path / "out")))
    images = load(tmp_path / "out").processor.image_processor
    theirs = images(images=[[picture(*size)]], return_tensors="pt")["pixel_values"][0, 0]
    ours = to_tensor(picture(*size), model.vision_encoder.image).float() / 127.5 - 1
    torch.testing.assert_close(theirs, ours, atol=0.008 if older("transformers", than="5.24") else 1e-5, rtol=0)


@pytest.mark.skipif(older("transformers", than="5.24"), reason="older versions have Pillow's Lanczos filter")
def test_a_filter_that_transformers_lacks_is_told(tmp_path):
    exported = export(tiny_model("vision_encoder.resample=lanczos"), tmp_path / "out")
    off = [line for line in exported.differs if line.startswith("a picture")]
    assert [re.sub(r"\d+/", "", line) for line in off] == [
        f"a picture of {ratio} is up to 255 off" for ratio in ("1:1", "4:3", "3:4", "4:1")
    ]


def test_without_torchvision_pillow_prepares_the_pictures(tmp_path, monkeypatch):
    def missing(**options):
        raise ImportError("Idefics3ImageProcessor requires the Torchvision library")

    model, options = tiny_model(), {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    with_it = processor_of(model, model.vision_encoder.image, options).image_processor
    monkeypatch.setattr("transformers.Idefics3ImageProcessor", missing)
    without = processor_of(model, model.vision_encoder.image, options).image_processor
    assert type(without).__name__ == "Idefics3ImageProcessorPil"
    assert without.to_dict() == with_it.to_dict()


def test_a_token_before_every_text_is_left_to_the_template(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.add_bos_token = True
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    tokenizer.save_pretrained(str(tmp_path / "tokenizer"))
    model = tiny_model(
        *IDEFICS3[:1], "language_decoder.vocab_size=260", f"language_decoder.tokenizer={tmp_path / 'tokenizer'}"
    )
    assert beyond_rounding(export(model, tmp_path / "out")) == []
    assert load(tmp_path / "out").processor.tokenizer("a")["input_ids"] == [model.text.tokenizer("a")["input_ids"][1]]


def test_what_cannot_be_expressed_is_refused_by_name(tmp_path):
    model = tiny_model("projector=mlp")
    with pytest.raises(ConfigError) as refusal:
        export(model, tmp_path / "out")
    assert str(refusal.value) == (
        "projector mlp cannot be expressed in transformers' Idefics3; what can is pixel_shuffle "
        "(a component tells how by a method to_transformers).\n"
        "  nanovlm export --to folder keeps every component"
    )
    assert not (tmp_path / "out").exists()


def test_all_that_cannot_be_expressed_is_told_at_once(tmp_path):
    sizes = "hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, image_size: 16, patch_size: 4"
    encoder = f"vision_encoder={{name: hf_vision, architecture: {{model_type: dinov2, {sizes}}}}}"
    model = tiny_model("projector=resampler", encoder)
    with pytest.raises(ConfigError, match=r"(?s)vision_encoder hf_vision cannot be.*projector resampler cannot be"):
        export(model, tmp_path / "out")


def test_a_decoder_of_another_architecture_is_refused_by_name(tmp_path):
    model = tiny_model(borrowed().replace("model_type: llama", "model_type: qwen2"))
    with pytest.raises(ConfigError, match=r"^language_decoder: architecture qwen2 cannot be expressed .*, llama can"):
        export(model, tmp_path / "out")


def test_a_grid_whose_positions_transformers_mistakes_is_refused(tmp_path):
    for side in (1, 2, 4, 14, 16, 24, 27, 32):
        check_positions(side)
    with pytest.raises(ConfigError, match=r"of a 25 x 25 patch grid, transformers' Idefics3 gives \d+ patches the pos"):
        check_positions(25)
    model = tiny_model("vision_encoder.image_size=50", "vision_encoder.patch_size=2", "projector.factor=5")
    with pytest.raises(ConfigError, match=r"^vision_encoder: of a 25 x 25 patch grid"):
        export(model, tmp_path / "out")


def test_transformers_that_compute_something_else_are_noticed(tmp_path, monkeypatch):
    from transformers.models.idefics3 import modeling_idefics3

    monkeypatch.setattr(modeling_idefics3.Idefics3Connector, "pixel_shuffle", lambda self, x, r: x.unflatten(
        1, (-1, r * r)).flatten(2))  # fmt: skip
    with pytest.raises(CheckpointError, match=r"logits differ from ours by up to .* so the model was not exported"):
        export(stirred(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_may_be_stored_in_half_precision(tmp_path):
    model = stirred()
    exported = export(model, tmp_path / "out", "bf16")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert exported.logits < 1e-4  # between models of the same, rounded weights
    again = VisionLanguageModel.from_pretrained(tmp_path / "out")
    assert all(again.state_dict()[name].equal(tensor) for name, tensor in model.state_dict().items())


def test_an_export_replaces_its_like_and_nothing_else(tmp_path):
    export(stirred(), tmp_path / "out")
    export(stirred(seed=1), tmp_path / "out")
    again = VisionLanguageModel.from_pretrained(tmp_path / "out")
    assert again.projector.linear.weight.equal(stirred(seed=1).projector.linear.weight)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"model_type": "idefics3"}')
    with pytest.raises(ConfigError, match="holds something else than a model"):
        export(stirred(), tmp_path / "mine")


def test_fine_tuning_may_start_from_it(tmp_path):
    model = stirred(*IDEFICS3)
    export(model, tmp_path / "out")
    started = VisionLanguageModel(blueprint_of(weights=str(tmp_path / "out")))
    started.load_pretrained()
    assert all(started.state_dict()[name].equal(tensor) for name, tensor in model.state_dict().items())
    assert started.text.prompt("What?", 1) == model.text.prompt("What?", 1)


def test_a_damaged_export_is_not_read(tmp_path):
    export(stirred(), tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "lm_head.weight": tensors["model.text_model.embed_tokens.weight"] + 1}, file)
    with pytest.raises(CheckpointError, match=r"lm_head.weight is not the embedding again"):
        VisionLanguageModel.from_pretrained(tmp_path / "out")
    tensors["model.connector.new"] = tensors.pop("model.connector.modality_projection.proj.weight")
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"(?s)missing.*projector.linear.weight.*unexpected.*connector.new"):
        VisionLanguageModel.from_pretrained(tmp_path / "out")


def test_a_model_of_real_size_has_a_place_for_each_tensor():
    """The baseline's components, on ``meta``: nanoVLM's number of parameters, the rows of added tokens among them."""
    with torch.device("meta"):
        model = VisionLanguageModel(blueprint_of())
    processor = processor_of(model, model.vision_encoder.image, {})
    exported = to_idefics3(model, parts_of(model, load_plugins()), processor.tokenizer, processor.image_token_id)
    assert sum(tensor.numel() for tensor in exported.parameters()) == 222_081_600
    assert {tensor.device.type for tensor in exported.parameters()} == {"meta"}
