"""How every model component must be built, and what becomes of its weights."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nanovlm.components import ComponentConfig, PatchGrid
from nanovlm.errors import ConfigError
from nanovlm.hub import HubError, Unreachable
from nanovlm.schema import parse
from nanovlm.testing.checks import NotHere, Subject, Violation, check, doing
from nanovlm.testing.models import MODELS, context, few, given_to, output_of, stirred_tiny, tiny, tiny_on_meta
from nanovlm.testing.surroundings import randomness_untouched
from nanovlm.weights import load_weights, read_tensors, tied_once

REAL_GRIDS = (PatchGrid(14, 14, 768), PatchGrid(16, 16, 384), PatchGrid(32, 32, 768), PatchGrid(27, 27, 1152))
ON_META = "on the `meta` device (which has shapes and no numbers: no weight can be looked at there)"
MOST_SECONDS = 1.0  # to build a tiny one
MOST_PARAMETERS = 1_000_000


@check(*MODELS)
def builds_from_its_defaults_on_meta(subject: Subject) -> None:
    """builds the real thing from the defaults of its options, on `meta`, where every experiment is planned."""
    config = _default_config(subject.cls.Config)
    with doing(f"to build from its defaults {ON_META}", subject), torch.device("meta"):
        model = _default_model(subject, config)
    if real := [name for name, tensor in _tensors(model).items() if not tensor.is_meta]:
        raise Violation(
            f"makes {few(real)} on another device than `meta` when it is built there: make tensors in __init__ without "
            "naming a device, and read no weights"
        )


def _default_config(schema: type[ComponentConfig]) -> ComponentConfig:
    """That of the defaults, with random weights; NotHere where there is none without network."""
    required = [name for name, field in schema.model_fields.items() if field.is_required()]
    if required:
        raise NotHere(f"{few(required)} must be given: there are no defaults to build from")
    weights = schema.model_fields.get("weights")
    chosen = {} if weights is None or weights.default == "random" else {"weights": "random"}
    try:
        return parse(schema, chosen, "defaults").resolved()
    except (HubError, Unreachable) as error:
        raise NotHere(f"its defaults need something that is not here: {error}") from None


def _default_model(subject: Subject, config: ComponentConfig) -> nn.Module:
    """A projector for the first grid of a real encoder that suits it."""
    if subject.kind != "projector":
        return subject.cls(config)
    refusals = []
    for grid in REAL_GRIDS:
        try:
            return subject.cls(config, **context(subject, grid))
        except ConfigError as error:
            refusals.append(str(error))
    sizes = ", ".join(f"{grid.height} x {grid.width}" for grid in REAL_GRIDS)
    raise Violation(f"suits by its defaults none of the grids {sizes}: {refusals[0]}")


@check(*MODELS)
def builds_the_same_on_meta(subject: Subject) -> None:
    """has the same tensors on `meta` as for real."""
    with doing(f"to build {ON_META}", subject):
        planned = _tensors(tiny_on_meta(subject))
    real = _tensors(tiny(subject))
    if stray := [name for name, tensor in planned.items() if not tensor.is_meta]:
        raise Violation(f"makes {few(stray)} on another device than `meta` when it is built there: name no device")
    if different := sorted(real.keys() ^ planned.keys()):
        raise Violation(f"has {few(different)} only for real or only on `meta`: build the same modules on every device")
    for name, tensor in real.items():
        if tensor.shape != planned[name].shape:
            raise Violation(f"has {name} {tuple(tensor.shape)} for real, and {tuple(planned[name].shape)} on `meta`")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that are not saved too."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


@check(*MODELS)
def tiny_is_quick(subject: Subject) -> None:
    """builds from `Config.tiny()` in a moment, and small: every test and check does so."""
    model = tiny(subject)  # imports what it needs
    if (count := sum(parameter.numel() for parameter in model.parameters())) > MOST_PARAMETERS:
        raise Violation(
            f"has {count:,} parameters from `Config.tiny()`, where at most {MOST_PARAMETERS:,} are expected: override "
            "`tiny()` with small sizes"
        )
    seconds = min(_seconds_to_build(subject) for _ in range(3))  # the machine may be busy with something else
    if seconds > MOST_SECONDS:
        raise Violation(f"takes {seconds:.1f} s to build from `Config.tiny()`, where {MOST_SECONDS:.0f} s is the most")


def _seconds_to_build(subject: Subject) -> float:
    start = time.perf_counter()
    tiny(subject)
    return time.perf_counter() - start


@check(*MODELS)
def weights_are_the_seeds_alone(subject: Subject) -> None:
    """draws its weights from torch's seed and from nothing else."""
    models = [tiny(subject, seed) for seed in (0, 0, 1)]
    first, again, other = map(tied_once, models)
    if moved := [name for name in first if not first[name].equal(again[name])]:
        raise Violation(
            f"draws other weights from the same seed in {few(moved)}: use torch's own generator, as nn.Linear does, "
            "and none of numpy or Python"
        )
    trained = {name for name, parameter in models[0].named_parameters() if parameter.requires_grad}
    # What is computed, a table of sines say, is the same from every seed, and so are zeros and an identity.
    drawn = [name for name in trained & first.keys() if first[name].unique().numel() > 2]
    if drawn and all(first[name].equal(other[name]) for name in drawn):
        raise Violation("draws the same weights from every seed: use torch's own generator, and leave its seed alone")


@check(*MODELS)
def global_randomness_is_left_alone(subject: Subject) -> None:
    """leaves the random state of torch, numpy and Python as it was, when it is built and when it is used in eval."""
    with randomness_untouched("when it is built"):
        model = tiny(subject).eval()
    given = given_to(subject, model)
    with randomness_untouched("in a forward pass in eval mode"), torch.no_grad():
        output_of(subject, model, given)


@check(*MODELS)
@torch.no_grad()
def weights_survive_a_file(subject: Subject) -> None:
    """computes the same, bit for bit, from weights that were saved and loaded again."""
    other = tiny(subject, seed=1).eval()
    given = given_to(subject, other)
    with stirred_tiny(subject) as model:
        expected = output_of(subject, model, given)
        if not output_of(subject, model, given).equal(expected):
            raise Violation("computes something else each time in eval mode: is there dropout or noise of its own?")
        with TemporaryDirectory() as folder, doing("to save its weights and to load them again", subject):
            tensors = {name: tensor.detach().contiguous() for name, tensor in tied_once(model).items()}
            save_file(tensors, Path(folder) / "model.safetensors")
            load_weights(other, read_tensors(Path(folder)), source="its own file")
    if not (found := output_of(subject, other, given)).equal(expected):
        off = float((found - expected).abs().max())
        raise Violation(
            f"computes something else from its own weights, saved and loaded (off by {off:.1g}): what is drawn or "
            "learnt must be an nn.Parameter, or a buffer that is saved"
        )
