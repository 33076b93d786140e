"""A model's blocks: its layers, compiled and checkpointed one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from nanovlm.testing.checks import Violation
from nanovlm.testing.models import few


def require_blocks(model: Any, forward: Callable[[], object]) -> None:
    """Violation unless ``model.blocks`` are parts of the model, with weights, that ``forward`` calls."""
    blocks = list(getattr(model, "blocks", None) or ())
    if not blocks:
        raise Violation("has no `blocks`: list its layers there, as self.blocks = nn.ModuleList(...)")
    if len(list(model.blocks)) != len(blocks):
        raise Violation("has `blocks` that can be gone through only once: make them an nn.ModuleList, not a generator")
    weights = [parameter for block in blocks for parameter in block.parameters()]
    if not weights:
        raise Violation("has `blocks` without a single weight: list its layers there")
    own = {id(parameter) for parameter in model.parameters()}
    if foreign := sum(id(parameter) not in own for parameter in weights):
        raise Violation(
            f"has {foreign} weights in its `blocks` that are none of its own, and so neither trained nor saved: use "
            "nn.ModuleList in the place of a list"
        )
    called = _called(blocks, forward)
    if idle := [str(number) for number in range(len(blocks)) if number not in called]:
        raise Violation(
            f"does not call its blocks {few(idle)} as modules: what goes past `block(x, ...)` is neither compiled nor "
            "checkpointed"
        )


def _called(modules: Sequence[nn.Module], forward: Callable[[], object]) -> set[int]:
    """Which of the modules are called meanwhile."""
    called: set[int] = set()

    def note(number: int) -> Callable[..., None]:
        return lambda *_: called.add(number)

    hooks = [module.register_forward_pre_hook(note(number)) for number, module in enumerate(modules)]
    forward()
    for hook in hooks:
        hook.remove()
    return called
