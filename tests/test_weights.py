import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import example, model_of, tiny_model
from torch import nn

from nanovlm import CheckpointError, Turn, VisionLanguageModel
from nanovlm.data.packing import pack_row
from nanovlm.weights import (
    check_tied,
    differing,
    load_weights,
    read_checkpoint_config,
    read_preprocessor,
    read_tensors,
    repeated,
    tied_once,
)

ANSWER_ONLY = (
    "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 2)


@torch.no_grad()
def logits(model: VisionLanguageModel) -> torch.Tensor:
    row = pack_row([example(model, [Turn("What is this?", "a cat")], 1)], model.num_image_tokens)
    return model.language_decoder.logits(model.hidden(row))


def write_random_backbones(folder) -> None:
    """Checkpoints of transformers that the tiny encoder and decoder can load."""
    from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=16, patch_size=4)).save_pretrained(folder / "siglip")
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=257, tie_word_embeddings=True)).save_pretrained(folder / "llama")


def test_whatever_does_not_fit_is_listed_by_name():
    tensors = Two().state_dict()
    tensors["third.weight"] = tensors.pop("first.weight")
    tensors["second.weight"] = torch.zeros(2, 4)
    with pytest.raises(CheckpointError) as caught:
        load_weights(Two(), tensors, "some/checkpoint")
    assert str(caught.value).splitlines() == [
        "some/checkpoint does not fit Two:",
        "  missing (1):",
        "    first.weight",
        "  unexpected (1):",
        "    third.weight",
        "  misshapen (1):",
        "    second.weight (2, 4), the model has (2, 3)",
    ]


def test_a_checkpoint_that_does_not_fit_changes_nothing():
    model = Two()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="missing"):
        load_weights(model, {"first.weight": torch.ones(3, 2)}, "here")
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_a_long_list_is_cut_short():
    model = nn.ModuleList(nn.Linear(1, 1) for _ in range(10))
    with pytest.raises(CheckpointError, match=r"missing \(20\):(\n    \S+){8}\n    and 12 more$"):
        load_weights(model, {}, "here")


def test_only_a_prefix_that_was_named_is_ignored():
    tensors = Two().state_dict() | {"text.weight": torch.zeros(1), "texture": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"unexpected \(1\):\n    texture$"):
        load_weights(Two(), tensors, "here", ignored=["text."])


def test_names_are_translated_and_values_converted():
    source = Two()
    tensors = {f"model.{name}": tensor.double() for name, tensor in source.state_dict().items()}
    target = Two()
    load_weights(target, tensors, "here", rename=lambda name: name.removeprefix("model."))
    assert all(tensor.equal(source.state_dict()[name]) for name, tensor in target.state_dict().items())
    assert target.first.weight.dtype == torch.float32


def test_a_tied_tensor_is_kept_once():
    model = Two()
    model.second.weight = model.first.weight
    assert list(tied_once(model)) == ["first.weight", "first.bias", "second.bias"]
    assert repeated(model) == {"second.weight": "first.weight"}


def test_a_tied_head_is_the_embedding_again():
    embedding = torch.randn(3, 2)
    check_tied("head", embedding.clone(), embedding, "here")
    message = (
        "here: head is not the embedding again, though config.json says tie_word_embeddings: set it to false there"
    )
    for other in (embedding + 1, None):
        with pytest.raises(CheckpointError, match=message):
            check_tied("head", embedding, other, "here")


def test_shards_are_read_together(tmp_path):
    tensors = Two().state_dict()
    names = sorted(tensors)
    weight_map = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    read = read_tensors(tmp_path)
    assert sorted(read) == names
    assert all(read[name].equal(tensors[name]) for name in names)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model-1\.safetensors"):
        read_tensors(tmp_path)


def test_a_quantized_checkpoint_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "quantization_config": {"bits": 4}}')
    with pytest.raises(CheckpointError, match=r"is quantized, which cannot be trained: name the checkpoint that it"):
        read_checkpoint_config(tmp_path)


def test_a_preprocessor_may_stand_in_a_file_of_its_own_or_beside_others(tmp_path):
    assert read_preprocessor(tmp_path) == {}
    (tmp_path / "processor_config.json").write_text('{"image_processor": {"resample": 2}, "video_processor": {}}')
    assert read_preprocessor(tmp_path) == {"resample": 2}
    (tmp_path / "preprocessor_config.json").write_text('{"resample": 3}')
    assert read_preprocessor(tmp_path) == {"resample": 3}


def test_only_what_a_config_says_can_differ():
    config = {"act": "gelu", "bias": None, "window": 5, "other": 1}
    assert differing(config, {"act": "silu", "bias": False, "window": None, "left_out": 0}) == [
        "act='gelu'",
        "window=5",
    ]


@pytest.mark.parametrize("index", [{}, {"weight_map": ["model.safetensors"]}], ids=str)
def test_an_index_that_names_no_file_is_refused(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json has no weight_map"):
        read_tensors(tmp_path)


def test_an_index_reads_nothing_outside_of_its_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(Two().state_dict(), tmp_path / "other.safetensors")
    index = {"weight_map": dict.fromkeys(Two().state_dict(), "../other.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model has no other\.safetensors; weights are read from"):
        read_tensors(folder)


def test_a_truncated_file_is_named(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(Two().state_dict(), file)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
        read_tensors(tmp_path)


def test_a_pickle_is_not_read(tmp_path):
    torch.save(Two().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"has no model\.safetensors; weights are read from safetensors files only"
    ):
        read_tensors(tmp_path)


@pytest.mark.parametrize("tied", ["true", "false"])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path, tied):
    model = tiny_model(f"language_decoder.tie_word_embeddings={tied}", seed=4)
    model.save_pretrained(tmp_path / "model")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert ("language_decoder.head.weight" in saved) == (tied == "false")
    assert sum(tensor.numel() for tensor in saved.values()) == sum(p.numel() for p in model.parameters())
    loaded = VisionLanguageModel.from_pretrained(tmp_path / "model")
    assert not loaded.training
    assert logits(loaded).equal(logits(model))
    assert loaded.text.conversation([Turn("Ä <image>", "日本")], 1) == model.text.conversation(
        [Turn("Ä <image>", "日本")], 1
    )


def test_a_saved_model_needs_no_backbone(tmp_path):
    write_random_backbones(tmp_path)
    model = model_of(
        {"name": "siglip", "weights": str(tmp_path / "siglip")},
        {"name": "smollm2", "weights": str(tmp_path / "llama"), "tokenizer": "bytes"},
    )
    model.load_pretrained()
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "siglip")
    shutil.rmtree(tmp_path / "llama")
    assert logits(VisionLanguageModel.from_pretrained(tmp_path / "model")).equal(logits(model))


def test_a_template_from_a_file_is_saved_with_the_model(tmp_path):
    template = tmp_path / "mine.jinja"
    template.write_text(ANSWER_ONLY)
    model = tiny_model(f"language_decoder.template={template}")
    model.save_pretrained(tmp_path / "model")
    template.unlink()
    (tmp_path / "model").rename(tmp_path / "moved")
    loaded = VisionLanguageModel.from_pretrained(tmp_path / "moved")
    assert loaded.text.template == ANSWER_ONLY
    loaded.save_pretrained(tmp_path / "again")
    shutil.rmtree(tmp_path / "moved")
    assert VisionLanguageModel.from_pretrained(tmp_path / "again").text.template == ANSWER_ONLY


def test_a_model_can_be_saved_over_its_own_folder(tmp_path):
    tiny_model(seed=1).save_pretrained(tmp_path / "model")
    loaded = VisionLanguageModel.from_pretrained(tmp_path / "model")
    loaded.save_pretrained(tmp_path / "model")
    assert logits(VisionLanguageModel.from_pretrained(tmp_path / "model")).equal(logits(tiny_model(seed=1)))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"has no config\.json: is it a model folder\?"),
        ("{", r"config\.json is not JSON"),
        ("[]", r"config\.json is not a JSON object"),
        (
            '{"model_type": "llama"}',
            r"names no vision_encoder, projector, language_decoder: it was not written by nanovlm",
        ),
    ],
)
def test_a_folder_that_is_no_model_says_why(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        VisionLanguageModel.from_pretrained(tmp_path)


def test_a_model_folder_with_another_models_weights_lists_them(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_model("projector.factor=1").save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "model")
    with pytest.raises(
        CheckpointError, match=r"misshapen \(1\):\n    projector\.linear\.weight \(24, 16\), .* \(24, 64\)"
    ):
        VisionLanguageModel.from_pretrained(tmp_path / "model")
