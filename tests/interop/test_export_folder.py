"""A plain model folder: LoRA merged, weights rounded, all else kept."""

import json

import pytest
import torch
from exporting import LORA, VOCAB, conversations, our_logits, stirred
from safetensors.torch import load_file

from nanovlm import ConfigError, VisionLanguageModel
from nanovlm.adapters import adapters, merge_lora
from nanovlm.interop.export import export_folder


@pytest.mark.parametrize("targets", ["[]", "[query, down]"], ids=["every layer", "some"])
def test_adapters_are_merged_into_the_weights_beside_them(targets):
    model = stirred(f"language_decoder.lora={{rank: 3, alpha: 5, dropout: 0.5, targets: {targets}}}")
    examples = conversations(model, VOCAB)
    before = our_logits(model, examples)
    layer = model.language_decoder.blocks[1].attention.query
    a, b, w = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.base_layer.weight
    expected = w.double() + 5 / 3 * b.double() @ a.double()
    merge_lora(model.language_decoder)
    assert adapters(model) == []
    torch.testing.assert_close(model.language_decoder.blocks[1].attention.query.weight.double(), expected)
    for own, merged in zip(before, our_logits(model, examples), strict=True):
        torch.testing.assert_close(merged, own, atol=2e-5, rtol=0)
    assert not before[0].equal(our_logits(stirred(), examples)[0])  # the adapters did something


def test_without_adapters_nothing_changes():
    model = stirred()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merge_lora(model.language_decoder)
    assert all(before[name].equal(tensor) for name, tensor in model.state_dict().items())


def test_the_folder_knows_nothing_of_lora(tmp_path, monkeypatch):
    model = stirred(LORA)
    examples = conversations(model, VOCAB)
    before = our_logits(model, examples)
    export_folder(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["language_decoder"]["lora"] is None
    assert not any("lora" in name for name in load_file(tmp_path / "out" / "model.safetensors"))
    monkeypatch.setitem(__import__("sys").modules, "peft", None)  # not needed any more
    again = VisionLanguageModel.from_pretrained(tmp_path / "out")
    for own, loaded in zip(before, our_logits(again, examples), strict=True):
        torch.testing.assert_close(loaded, own, atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype, torch_dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_in_half_precision_are_rounded_once(tmp_path, dtype, torch_dtype):
    model = stirred()
    exact = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_folder(model, tmp_path / "out", dtype)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch_dtype}
    again = VisionLanguageModel.from_pretrained(tmp_path / "out")
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == torch.float32
        assert tensor.equal(exact[name].to(torch_dtype).float())
    examples = conversations(model, VOCAB)  # the model in memory was rounded in the same way
    assert all(a.equal(b) for a, b in zip(our_logits(model, examples), our_logits(again, examples), strict=True))


def test_what_a_precision_cannot_hold_is_refused(tmp_path):
    model = stirred()
    with torch.no_grad():
        model.projector.linear.weight[0, 0] = 1e5
    match = r"--dtype: projector.linear.weight holds 1e\+05, and float16 at most 65504: use bf16"
    with pytest.raises(ConfigError, match=match):
        export_folder(model, tmp_path / "out", "fp16")
    assert not (tmp_path / "out").exists()
    export_folder(model, tmp_path / "out", "bf16")


def test_template_tokenizer_and_plugins_are_kept(tmp_path):
    template = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
    (tmp_path / "chat.jinja").write_text(template)
    stirred(f"language_decoder.template={tmp_path / 'chat.jinja'}").save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["plugins"]["projector"] = {"module": "then", "distribution": "then", "version": "0", "sha256": "0" * 64}
    file.write_text(json.dumps(config))
    export_folder(VisionLanguageModel.from_pretrained(tmp_path / "model"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
    for name in ("template.jinja", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
