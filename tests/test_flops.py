from functools import cache

import pytest
import torch
from tiny import tiny_recipe

from nanovlm import VisionLanguageModel
from nanovlm.data.conversation import Tokens
from nanovlm.data.packing import Example, pack_row
from nanovlm.flops import PEAKS, Cost, count_flops, peak_flops

ROLES = ("vision_encoder", "projector", "language_decoder")


@cache
def planned(*overrides: str) -> VisionLanguageModel:
    with torch.device("meta"):
        return VisionLanguageModel(tiny_recipe(*overrides).blueprint)


@cache
def cost_of(overrides: tuple[str, ...], trained: tuple[str, ...]) -> Cost:
    return Cost.of(planned(*overrides), trained)


def sample(tokens: int, targets: int, images: int) -> Example:
    supervised = [i >= tokens - targets for i in range(tokens)]
    return Example(Tokens([0] * tokens, supervised, [0] * images), torch.empty(images, 3, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize("trained", [ROLES, ("projector",), ("language_decoder",), ("projector", "vision_encoder")])
@pytest.mark.parametrize("sizes", [(30, 7, 2), (5, 1, 1), (90, 89, 0)], ids=str)
@pytest.mark.parametrize("overrides", [(), ("projector=resampler",), ("language_decoder.lora.rank=2",)], ids=str)
def test_the_cost_of_a_row_is_what_its_pass_takes(sizes, trained, overrides):
    model, cost = planned(*overrides), cost_of(overrides, trained)
    model.train_only(trained)
    row = pack_row([sample(*sizes)], model.num_image_tokens)
    adapted = any("lora" in override for override in overrides)
    if sizes[2] or ("language_decoder" in trained and not adapted):  # else no gradient goes all the way down
        assert cost.of_rows([row]) == pytest.approx(count_flops(model, row), rel=1e-6)


def test_the_cost_of_samples_adds_up():
    model = planned()
    cost = Cost.of(model, ROLES)
    samples = [sample(30, 7, 2), sample(5, 1, 1), sample(5, 2, 0)]
    alone = [cost.of_rows([pack_row([each], model.num_image_tokens)]) for each in samples]
    assert cost.of_rows([pack_row(samples, model.num_image_tokens)]) == pytest.approx(sum(alone))


def test_attention_and_head_cost_what_their_formulas_say():
    model = planned()
    cost, config = Cost.of(model, ROLES), model.language_decoder.config
    backward = 3  # a forward pass, and one for each factor's gradient
    pairs = config.num_hidden_layers * 2 * 2 * config.hidden_size
    assert cost.per_pair == backward * pairs
    assert cost.per_target == backward * 2 * config.hidden_size * config.vocab_size


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", PEAKS["H200"]),
        ("NVIDIA H100 80GB HBM3", PEAKS["H100"]),
        ("NVIDIA H100 PCIe", PEAKS["H100 PCIe"]),
        ("NVIDIA A100-SXM4-40GB", PEAKS["A100"]),
        ("Tesla T4", PEAKS["T4"]),
        ("NVIDIA L40S", PEAKS["L40S"]),
        ("NVIDIA L40", None),  # not to be taken for an L4
        ("NVIDIA A10G", None),  # nor this for an A10
        ("Quadro K620", None),
    ],
)
def test_a_devices_peak_is_its_own_or_unknown(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), "bf16") == peak
    assert peak_flops(torch.device("cuda"), "fp32") is None
    assert peak_flops(torch.device("cpu"), "bf16") is None
