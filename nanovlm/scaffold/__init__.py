"""What `nanovlm new` writes: a component that works, its test, and an experiment that uses it."""

from nanovlm.scaffold.writer import Written, scaffold

__all__ = ["Written", "scaffold"]
