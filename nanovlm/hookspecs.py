"""Every way to extend nanovlm: a plugin is a module that implements some of these."""

from collections.abc import Callable

import pluggy

hookspec = pluggy.HookspecMarker("nanovlm")
hookimpl = pluggy.HookimplMarker("nanovlm")

CONTRACT = 1
"""The version of what a plugin may rely on: the hooks here, the names that ``nanovlm`` exports, what components.py and
data/dataset.py ask of a class, and how the core calls it. Everything else may change at any time.

It rises when a plugin that was right may be wrong now, and not for something new that nobody has to know. A plugin says
what it was written for by ``nanovlm_contract = 1`` in its module; one for another contract is refused by name.
"""

Register = Callable[[str, type], None]


@hookspec
def register_vision_encoders(register: Register) -> None:
    """``register(name, cls)``: cls maps pixels (B, 3, H, W) uint8 to patches (B, N, C)."""


@hookspec
def register_projectors(register: Register) -> None:
    """``register(name, cls)``: cls maps patches (B, N, C) to image tokens (B, M, D)."""


@hookspec
def register_language_decoders(register: Register) -> None:
    """``register(name, cls)``: cls maps embedded tokens (T, D) to hidden states (T, D) and logits (T, V)."""


@hookspec
def register_datasets(register: Register) -> None:
    """``register(name, cls)``: cls gives pictures and conversations; a benchmark also scores answers."""


@hookspec
def register_trackers(register: Register) -> None:
    """``register(name, cls)``: cls watches a run (started, step_finished, evaluated, finished or failed)."""
