"""Does a component keep its contract? The same checks for a plugin's own tests, for `nanovlm check`, and for ours.

``checks_of("gated_mlp")`` gives them one by one, for pytest; ``check_component("gated_mlp")`` makes them all.
"""

from importlib import import_module

from nanovlm.testing.checks import CHECKS, Check, NotHere, Outcome, Subject, Violation, check_component, checks_of

for module in (
    "building", "pictures", "vision_encoders", "projectors", "language_decoders", "decoder_paths",
    "datasets", "streams", "benchmarks", "trackers", "training", "common", "importing",
):  # fmt: skip
    import_module(f"nanovlm.testing.{module}")  # takes its checks in

__all__ = ["CHECKS", "Check", "NotHere", "Outcome", "Subject", "Violation", "check_component", "checks_of"]
