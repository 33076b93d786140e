"""What every component that pictures go through must do: vision encoders and projectors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nanovlm.seeding import seeded
from nanovlm.testing.checks import NotHere, Subject, Violation, check, doing
from nanovlm.testing.models import given_to, off_by, output_of, require_gradients, stirred_tiny, tiny, tiny_on_meta
from nanovlm.training.precision import Precision

ROUNDING = 1e-4  # how far two ways to the same numbers in fp32 may be apart, relative to their norm
DIFFERENT = 1e-3  # how far apart two pictures are at the least, relative to the norm
HALF = 0.1  # how far the same in half precision may be from fp32, relative to the norm
KINDS = ("vision_encoder", "projector")


@check(*KINDS)
def pictures_do_not_mix(subject: Subject) -> None:
    """sees each picture by itself, and sees it."""
    with stirred_tiny(subject) as model, stirred_tiny(subject) as twin:
        given = given_to(subject, model, batch=3)
        with torch.no_grad():
            together = output_of(subject, model, given)
            if not together.isfinite().all():
                raise Violation("gives numbers that are not finite: NaN, or infinity")
            _require_the_same_alone(twin, given, together)
            _require_the_same_in_training(model.train(), given)
        if given.is_floating_point():  # where a gradient tells of what rounding would hide
            _require_no_gradient_across(model.eval(), given)


def _require_the_same_alone(twin: nn.Module, given: Tensor, together: Tensor) -> None:
    """twin: has the same weights, and has seen no picture yet."""
    for i in (2, 1, 0):
        alone = twin(given[i : i + 1])[0]
        if (off := off_by(together[i], alone)) > ROUNDING:
            raise Violation(
                f"gives something else for a picture among others than for the same alone (off by {off:.1g} of the "
                "norm): axis 0 is for pictures, so compute nothing over it, and keep nothing from one call to the next"
            )
    if off_by(together[0], together[1]) < DIFFERENT:
        raise Violation("gives the same for two different pictures: is its input used?")


def _require_the_same_in_training(model: nn.Module, given: Tensor) -> None:
    found = []
    for others in (given, given[1].expand_as(given)):
        with seeded("training"):  # the same dropout for both
            found.append(model(others)[1])
    if (off := off_by(*found)) > ROUNDING:
        raise Violation(
            f"gives something else for a picture in training, where the others beside it are other ones (off by "
            f"{off:.1g} of the norm): is there a BatchNorm? nn.LayerNorm and nn.GroupNorm see each picture by itself"
        )


def _require_no_gradient_across(model: nn.Module, given: Tensor) -> None:
    given = given.clone().requires_grad_()
    found = model(given)[1].pow(2).sum()
    (gradient,) = torch.autograd.grad(found, given, allow_unused=True) if found.requires_grad else (None,)
    if gradient is None:
        raise Violation(
            "gives no gradient to the patches, so that the encoder before it learns nothing: leave out detach() and "
            "torch.no_grad"
        )
    if gradient[[0, 2]].any():
        raise Violation(
            "mixes pictures, if only a little: what it gives for one depends on others; axis 0 is for pictures, and "
            "nothing may be computed over it"
        )


@check(*KINDS)
@torch.no_grad()
def input_is_left_alone(subject: Subject) -> None:
    """leaves the pixels or patches that it is given as they are."""
    model = tiny(subject).eval()
    given = given_to(subject, model)
    before = given.clone()
    model(given)
    if not given.equal(before):
        raise Violation("changes what it is given: write `x = x + ...`, not `x += ...`, and none of `x.add_(...)`")


@check(*KINDS)
def every_parameter_learns(subject: Subject) -> None:
    """gives every parameter a finite gradient."""
    model = tiny(subject)
    require_gradients(model, output_of(subject, model, given_to(subject, model)))


@check(*KINDS)
def half_precision_does(subject: Subject) -> None:
    """gives nearly the same under autocast in bf16 and fp16, as it is trained on a GPU, with finite gradients."""
    with stirred_tiny(subject) as model:
        given = given_to(subject, model)
        expected = output_of(subject, model, given).detach()
        for name in ("bf16", "fp16"):
            precision = Precision(name, torch.device("cpu"))
            for each in _arriving(given, precision.dtype):
                with doing(f"under autocast in {name}, given {each.dtype}", subject):
                    with precision.autocast():
                        found = model(each)
                    require_gradients(model, found, f" under autocast in {name}")
                _require_near(found, expected, f"under autocast in {name} than in fp32")


def _arriving(given: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """What an encoder gives to a projector under autocast may be in either precision; pixels are always uint8."""
    yield given
    if given.is_floating_point():
        yield given.to(dtype)


def _require_near(found: Tensor, expected: Tensor, where: str) -> None:
    if (off := off_by(found, expected)) > HALF:
        raise Violation(
            f"gives something else {where}: off by {off:.0%} of the norm, where less than {HALF:.0%} is expected; "
            "compute what needs it in fp32, by x.float()"
        )


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
    with stirred_tiny(subject) as model:
        given = given_to(subject, model)
        expected = model(given).detach()
        model.cuda()
        for name in ("fp32", "bf16", "fp16"):
            precision = Precision(name, torch.device("cuda"))
            with doing(f"on a GPU in {name}", subject):
                with precision.autocast():
                    found = model(given.cuda())
                require_gradients(model, found, f" on a GPU in {name}")
            _require_near(found, expected, f"on a GPU in {name} than on the CPU")
