"""Does a component keep its contract? The same checks for a plugin's own tests, for `nanovlm check`, and for ours."""

from nanovlm.testing import projectors as _projectors
from nanovlm.testing.checks import CHECKS, Check, Outcome, Violation, check_component, checks_of

del _projectors  # importing the modules of checks takes them in

__all__ = ["CHECKS", "Check", "Outcome", "Violation", "check_component", "checks_of"]
