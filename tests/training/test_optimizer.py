import math

import pytest
import torch
from tiny import example, tiny_experiment, tiny_model

from nanovlm import ConfigError, Turn
from nanovlm.data.packing import pack_row
from nanovlm.experiment import Training
from nanovlm.training.optimizer import Optimizer
from nanovlm.training.precision import Precision
from nanovlm.training.run import fingerprint
from nanovlm.training.schedule import schedule

FROZEN = {role: f"training.learning_rate.{role}=0" for role in ("vision_encoder", "projector", "language_decoder")}


def optimizer_of(model, *overrides: str, total_steps: int = 10) -> Optimizer:
    config = tiny_experiment(*overrides).training
    return Optimizer(model, config, total_steps, Precision("fp32", torch.device("cpu")))


def give_gradients(model, scale: float) -> float:
    """Random gradients; their norm over all parameters."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * scale
    return norm_of(model)


def norm_of(model) -> float:
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))


def test_each_component_has_its_own_peak():
    rates = {"projector": 0.3, "vision_encoder": 0.2, "language_decoder": 0.1}
    overrides = [f"training.learning_rate.{role}={rate}" for role, rate in rates.items()]
    optimizer = optimizer_of(tiny_model(), *overrides, "training.warmup=0.2")
    assert optimizer.learning_rates == {role: rate / 2 for role, rate in rates.items()}
    optimizer.advance()
    assert optimizer.learning_rates == rates


@pytest.mark.parametrize(("limit", "expected"), [(0.5, 0.5), (1e9, None), (0.0, None)])
def test_the_gradient_is_clipped_to_its_norm(limit, expected, monkeypatch):
    model = tiny_model()
    optimizer = optimizer_of(model, f"training.max_grad_norm={limit}")
    seen = []
    monkeypatch.setattr(optimizer.adamw, "step", lambda: seen.append(norm_of(model)))
    before = give_gradients(model, 0.1)
    assert float(optimizer.step()) == pytest.approx(before, rel=1e-5)  # what is reported is the norm before clipping
    assert seen == [pytest.approx(expected or before, rel=1e-4)]


def test_updates_are_adamws():
    overrides = (
        "training.weight_decay=0.3",
        "training.betas=[0.7, 0.9]",
        "training.max_grad_norm=0",
        "training.warmup=0",
    )
    model, plain = tiny_model(), tiny_model()
    optimizer = optimizer_of(model, *overrides)
    reference = torch.optim.AdamW(plain.parameters(), betas=(0.7, 0.9), weight_decay=0.3, fused=False, foreach=False)
    for step in range(4):
        for group in reference.param_groups:
            group["lr"] = 2e-3 * schedule(step, 10, Training(steps=10, warmup=0.0, final_learning_rate=0.1))
        give_gradients(model, 10.0**-step)
        give_gradients(plain, 10.0**-step)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-7)


def test_each_component_has_its_own_weight_decay():
    model = tiny_model()
    decays = {"projector": 0.1, "vision_encoder": 0.2, "language_decoder": 0.3}
    overrides = [f"training.weight_decay.{role}={decay}" for role, decay in decays.items()]
    optimizer = optimizer_of(model, *overrides, "training.warmup=0", "training.learning_rate=0.01")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():  # without a gradient a weight only decays
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.01 * decays[name.partition(".")[0]]))


def test_one_weight_decay_stands_for_all():
    assert dict(tiny_experiment("training.weight_decay=0.5").training.weight_decay) == dict.fromkeys(FROZEN, 0.5)


def test_a_component_is_frozen_until_its_step():
    model = tiny_model()
    optimizer = optimizer_of(model, "training.frozen_until_step.vision_encoder=2")
    trained = []
    for _ in range(4):
        before = fingerprint(model.vision_encoder)
        assert optimizer.trains("vision_encoder") == all(p.requires_grad for p in model.vision_encoder.parameters())
        assert optimizer.trains("vision_encoder") == ("vision_encoder" in optimizer.learning_rates)
        model(pack_row([example(model, [Turn("Hi?", "yes")], num_images=1)], model.num_image_tokens)).backward()
        optimizer.step()
        trained.append(fingerprint(model.vision_encoder) != before)
    assert trained == [False, False, True, True]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["training.frozen_until_step.projector=10"],
            r"training\.frozen_until_step\.projector=10: the run has 10 steps; lower it, or set "
            r"training\.learning_rate\.projector=0 to freeze it for good",
        ),
        (
            [f"training.frozen_until_step.{role}=1" for role in FROZEN],
            r"training\.frozen_until_step: something must be trained from the first step on",
        ),
        (
            [FROZEN["projector"], *(f"training.frozen_until_step.{role}=1" for role in FROZEN if role != "projector")],
            r"training\.frozen_until_step: something must be trained from the first step on",
        ),
    ],
)
def test_what_would_never_be_trained_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        optimizer_of(tiny_model(), *overrides)


def test_with_lora_only_the_adapters_are_trained():
    model = tiny_model("language_decoder.lora.rank=2")
    optimizer = optimizer_of(model, FROZEN["projector"], FROZEN["vision_encoder"])
    assert set(optimizer.groups) == {"language_decoder"}
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning
    assert all(".lora_" in name for name in learning)


def test_gradients_are_gone_after_a_step():
    model = tiny_model()
    optimizer = optimizer_of(model)
    give_gradients(model, 1.0)
    optimizer.step()
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("role", FROZEN)
def test_a_learning_rate_of_zero_asks_for_no_gradient(role):
    model = tiny_model()
    optimizer = optimizer_of(model, FROZEN[role])
    assert {name for name in FROZEN if not any(p.requires_grad for p in getattr(model, name).parameters())} == {role}
    assert role not in optimizer.learning_rates


def test_a_component_is_thawed_for_a_new_optimizer():
    model = tiny_model()
    optimizer_of(model, FROZEN["projector"])
    optimizer_of(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_run_in_which_everything_is_frozen_is_refused():
    with pytest.raises(ConfigError, match=r"training\.learning_rate: .*nothing to train"):
        optimizer_of(tiny_model(), *FROZEN.values())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_without_a_picture_a_projector_alone_learns_nothing(precision):
    """A step of text only, when the backbones are frozen: there is no gradient, and the schedule goes on."""
    model = tiny_model()
    config = tiny_experiment(FROZEN["vision_encoder"], FROZEN["language_decoder"]).training
    optimizer = Optimizer(model, config, 10, Precision(precision, torch.device("cpu")))
    before = fingerprint(model)
    optimizer.backward(model(pack_row([example(model, [Turn("Hi?", "yes")])], model.num_image_tokens)))
    assert float(optimizer.step()) == 0
    assert (fingerprint(model), optimizer.step_number) == (before, 1)


@pytest.mark.parametrize("limit", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_that_is_no_number_is_lost_and_nothing_else(value, limit):
    """Three updates of which the second is lost equal the two others, but for the schedule."""
    model, plain = tiny_model(), tiny_model()
    constant = ("training.warmup=0", "training.final_learning_rate=1", f"training.max_grad_norm={limit}")
    optimizer, reference = optimizer_of(model, *constant), optimizer_of(plain, *constant)
    for broken in (False, True, False):
        give_gradients(model, 0.1)
        if broken:
            next(model.projector.parameters()).grad[0, 0] = value
        else:
            give_gradients(plain, 0.1)
            reference.step()
        norm = optimizer.step()
        assert math.isfinite(norm) != broken
        assert float(optimizer.lost_in_a_row) == broken
    assert fingerprint(model) == fingerprint(plain)
    assert (float(optimizer.lost), optimizer.step_number) == (1, 3)


def test_lost_updates_in_a_row_are_counted_from_the_last_good_one():
    model = tiny_model()
    optimizer = optimizer_of(model)
    counts = []
    for broken in (True, True, False, True):
        give_gradients(model, math.nan if broken else 0.1)
        optimizer.step()
        counts.append((float(optimizer.lost), float(optimizer.lost_in_a_row)))
    assert counts == [(1, 1), (2, 2), (2, 0), (3, 1)]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_in_which_nothing_was_learnt_changes_nothing(precision):
    """Not even by momentum or decay; neither is it a lost update, nor one that lowers the scale."""
    model = tiny_model()
    optimizer = Optimizer(model, tiny_experiment().training, 10, Precision(precision, torch.device("cpu")))
    scale = optimizer.scaler.get_scale()
    give_gradients(model, 0.1)
    optimizer.step(torch.tensor(5))
    before = fingerprint(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(torch.tensor(0))
    assert fingerprint(model) == before
    assert (float(optimizer.lost), optimizer.step_number, optimizer.scaler.get_scale()) == (0, 2, scale)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_its_state_goes_on_elsewhere(precision):
    def fresh():
        model = tiny_model()
        config = tiny_experiment("training.max_grad_norm=0.1").training
        return model, Optimizer(model, config, 10, Precision(precision, torch.device("cpu")))

    def steps(model, optimizer, scales):
        for scale in scales:
            give_gradients(model, scale)
            optimizer.step()

    model, optimizer = fresh()
    steps(model, optimizer, [0.1, math.nan, 0.3])
    tensors, facts = optimizer.state()
    other, resumed = fresh()
    other.load_state_dict(model.state_dict())
    resumed.restore({name: tensor.clone() for name, tensor in tensors.items()}, facts)
    for each in ((model, optimizer), (other, resumed)):
        steps(*each, [math.nan, 0.2])
    assert fingerprint(model) == fingerprint(other)
    assert optimizer.state()[1] == resumed.state()[1]
    assert optimizer.learning_rates == resumed.learning_rates
