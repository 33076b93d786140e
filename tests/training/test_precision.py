import pytest
import torch
from tiny import tiny_model

from nanovlm.training.precision import Precision, attention_note

TOLD = "training.precision=bf16: this GPU computes in fp16 only, which is used, with a gradient scaler"


@pytest.mark.parametrize(
    ("choice", "device", "capability", "name", "note"),
    [
        ("auto", "cpu", None, "fp32", ""),
        ("auto", "cuda", (9, 0), "bf16", ""),
        ("auto", "cuda", (7, 5), "fp16", ""),
        ("bf16", "cuda", (8, 0), "bf16", ""),
        ("bf16", "cuda", (7, 5), "fp16", TOLD),
        ("fp16", "cuda", (9, 0), "fp16", ""),
        ("bf16", "cpu", None, "bf16", ""),
        ("fp32", "cuda", (7, 5), "fp32", ""),
    ],
)
def test_what_the_hardware_has_not_is_replaced_and_told(monkeypatch, choice, device, capability, name, note):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    scalers = []
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scalers.append(enabled))
    precision = Precision(choice, torch.device(device))
    assert (precision.name, precision.note) == (name, note)
    assert scalers == [name == "fp16"]


@pytest.mark.parametrize(
    ("width", "precision", "capability", "note"),
    [
        (32, "bf16", (9, 0), ""),
        (32, "fp32", (9, 0), "it needs half precision"),
        (32, "fp16", (7, 5), "it needs compute capability 8.0, and this GPU has 7.5"),
        (24, "fp16", (7, 5), ""),  # heads that do not suit flash attention: nobody expects it
    ],
)
def test_what_is_used_in_the_place_of_flash_attention_is_told(monkeypatch, width, precision, capability, note):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: None)
    decoder = tiny_model(f"language_decoder.hidden_size={width}").language_decoder
    told = attention_note(decoder, Precision(precision, torch.device("cuda")))
    start = "attention: samples are grouped by length and padded, since flash attention is not to be had: "
    assert told == (start + note if note else "")


def test_a_cpu_is_told_nothing():
    decoder = tiny_model("language_decoder.hidden_size=32").language_decoder
    assert attention_note(decoder, Precision("fp32", torch.device("cpu"))) == ""


def test_notes_are_told_once_at_the_start(trainer, monkeypatch):
    some, told = trainer(), []
    monkeypatch.setattr(some.trackers, "started", told.append)
    some.precision.note = TOLD
    some.train()
    assert [facts["notes"] for facts in told] == [[TOLD]]
