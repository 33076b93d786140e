"""What every component that pictures go through must do: vision encoders and projectors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nanovlm.testing.checks import NotHere, Subject, Violation, check, doing
from nanovlm.testing.models import given_to, output_of, require_gradients, tiny, tiny_on_meta
from nanovlm.training.precision import Precision

ROUNDING = 1e-4  # how far two ways to the same numbers in fp32 may be apart
HALF = 0.1  # how far the same in half precision may be from fp32, relative to the norm
KINDS = ("vision_encoder", "projector")


@check(*KINDS)
def pictures_do_not_mix(subject: Subject) -> None:
    """sees each picture by itself, and sees it."""
    model = tiny(subject).eval()
    given = given_to(subject, model, batch=3)
    with torch.no_grad():
        _require_the_same_alone(model, given)
    if given.is_floating_point():  # where a gradient tells of what rounding would hide
        _require_no_gradient_across(model, given)


def _require_the_same_alone(model: nn.Module, given: Tensor) -> None:
    together = model(given)
    for i in range(3):
        alone = model(given[i : i + 1])[0]
        if not torch.allclose(together[i], alone, rtol=ROUNDING, atol=ROUNDING):
            off = float((together[i] - alone).abs().max())
            raise Violation(
                f"gives something else for a picture among others than for the same alone (off by {off:.1g}): axis 0 "
                "is for pictures, and nothing may be computed over it"
            )
    if torch.allclose(together[0], together[1], atol=1e-3):
        raise Violation("gives the same for two different pictures: is its input used?")


def _require_no_gradient_across(model: nn.Module, given: Tensor) -> None:
    (gradient,) = torch.autograd.grad(model(given.requires_grad_())[1].pow(2).sum(), given)
    if gradient[[0, 2]].any():
        raise Violation(
            "mixes pictures, if only a little: what it gives for one depends on others; axis 0 is for pictures, and "
            "nothing may be computed over it"
        )


@check(*KINDS)
def every_parameter_learns(subject: Subject) -> None:
    """gives every parameter a finite gradient."""
    model = tiny(subject)
    require_gradients(model, output_of(subject, model, given_to(subject, model)))


@check(*KINDS)
def half_precision_does(subject: Subject) -> None:
    """gives nearly the same under autocast in bf16 and fp16, as it is trained on a GPU, with finite gradients."""
    device = torch.device("cpu")
    model = tiny(subject).eval()
    given = given_to(subject, model)
    expected = model(given).detach()
    for name in ("bf16", "fp16"):
        precision = Precision(name, device)
        for each in _arriving(given, precision.dtype):
            with doing(f"under autocast in {name}, given {each.dtype}", subject):
                with precision.autocast():
                    found = model(each)
                require_gradients(model, found, f" under autocast in {name}")
            off = float((found.detach().float() - expected).norm() / expected.norm())
            if not off < HALF:
                raise Violation(
                    f"gives something else under autocast in {name} than in fp32: off by {off:.0%} of the norm, where "
                    f"less than {HALF:.0%} is expected; compute what needs it in fp32, by x.float()"
                )


def _arriving(given: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """What an encoder gives to a projector under autocast may be in either precision; pixels are always uint8."""
    yield given
    if given.is_floating_point():
        yield given.to(dtype)


@check(*KINDS)
def runs_where_its_input_is(subject: Subject) -> None:
    """runs on the device that its input is on: of the `meta` device, so that it can be planned."""
    real, planned = tiny(subject), tiny_on_meta(subject)
    given = given_to(subject, real)
    where = "on `meta`, where every experiment is planned (does it make a tensor without device=x.device?)"
    with doing(where, subject):
        shape = planned(given.to("meta")).shape
    if shape != (expected := real(given).shape):
        raise Violation(f"gives {tuple(shape)} on `meta`, and {tuple(expected)} for real")


@check(*KINDS)
def runs_on_cuda(subject: Subject) -> None:
    """gives nearly the same on a GPU, in fp32, bf16 and fp16, with finite gradients."""
    if not torch.cuda.is_available():
        raise NotHere("torch sees no GPU here")
    model = tiny(subject).eval()
    given = given_to(subject, model)
    expected = model(given).detach()
    model.cuda()
    for name in ("fp32", "bf16", "fp16"):
        precision = Precision(name, torch.device("cuda"))
        with doing(f"on a GPU in {name}", subject):
            with precision.autocast():
                found = model(given.cuda())
            require_gradients(model, found, f" on a GPU in {name}")
        off = float((found.detach().float().cpu() - expected).norm() / expected.norm())
        if not off < HALF:
            raise Violation(f"gives something else on a GPU in {name} than on the CPU: off by {off:.0%} of the norm")
