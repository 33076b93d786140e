"""A check that nothing fails checks nothing: for each there are components that break it, and the sentence they get.

They stand in the modules `broken_*`, each in a dict BROKEN: by the check's name, the kind of a component, its class (or
the source of a plugin that registers `mine`), and a piece of the sentence.
"""

import importlib
from pathlib import Path

import pytest

from nanovlm.plugins import Registries, load_plugins
from nanovlm.testing import CHECKS, Subject
from nanovlm.testing.checks import bound_to, find
from nanovlm.testing.companions import COMPANIONS

MODULES = sorted(file.stem for file in Path(__file__).parent.glob("broken_*.py"))
BROKEN = [
    (name, *case)
    for module in MODULES
    for name, cases in importlib.import_module(module).BROKEN.items()
    for case in cases
]


def shown(value: object) -> str:
    return value.__name__ if isinstance(value, type) else "plugin" if "\n" in str(value) else str(value)


def subject_of(component: type | str, kind: str, folder: Path) -> Subject:
    """A class, or the source of a plugin that registers `mine`."""
    if isinstance(component, type):
        return find(component, kind, Registries())
    file = folder / "mine.py"
    file.write_text(component, encoding="utf-8")
    return find("mine", kind, load_plugins([str(file)]))


@pytest.mark.parametrize(("name", "kind", "component", "sentence"), BROKEN, ids=shown)
def test_a_broken_component_fails_its_check_and_is_told_so(name, kind, component, sentence, tmp_path):
    (bound,) = [each for each in bound_to(subject_of(component, kind, tmp_path)) if str(each) == name]
    outcome = bound.outcome()
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert sentence in outcome.problem


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.kinds[0]}-{check.name}")
def test_every_check_has_a_component_that_fails_it(check):
    assert any(name == check.name and kind in check.kinds for name, kind, _, _ in BROKEN)


def test_nothing_is_broken_that_no_check_looks_at():
    assert {name for name, *_ in BROKEN} <= {check.name for check in CHECKS}


SOUND = [bound for kind, cls in COMPANIONS.items() for bound in bound_to(find(cls, kind, Registries()))]


@pytest.mark.parametrize("bound", SOUND, ids=lambda bound: f"{bound.subject.kind}-{bound}")
def test_the_sound_ones_pass(bound):
    bound()
