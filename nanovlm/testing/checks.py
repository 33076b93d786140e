"""What a check is, what it is asked of, and how all of a component's are run.

A check is a function of a ``Subject`` that raises ``Violation`` with one sentence: what the component does, and what is
expected of it. Its docstring's first line, put behind the component's name, says what holds where it does not.
"""

from __future__ import annotations

import io
import time
import traceback
import unittest
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nanovlm.components import ComponentConfig
from nanovlm.errors import ConfigError, PluginError, named, unknown
from nanovlm.plugins import Registries, load_plugins
from nanovlm.registry import Entry, Plugin, Registry
from nanovlm.seeding import seeded

KINDS = ("vision_encoder", "projector", "language_decoder", "dataset", "tracker")


class Violation(AssertionError):
    """A component breaks its contract: what it does, and what is expected."""


class NotHere(Exception):
    """A check that cannot be made on this machine (no CUDA), or of this component (no benchmark), and why."""


@dataclass(frozen=True)
class Subject:
    """The component that is checked."""

    kind: str
    entry: Entry
    registries: Registries

    @property
    def cls(self) -> Any:
        return self.entry.cls

    @cached_property
    def config(self) -> ComponentConfig:
        """Its ``Config.tiny()``."""
        config: ComponentConfig = self.cls.Config.tiny()
        return config

    def build(self, seed: int = 0, **context: Any) -> Any:
        """A tiny one, built as the core does: its weights are the seed's, and global random state stays untouched."""
        with seeded(seed, self.kind):
            return self.cls(self.config, **context)


@dataclass(frozen=True)
class Check:
    """One thing that every component of some kinds must do."""

    name: str
    kinds: tuple[str, ...]
    says: str
    """What the component does where the check passes, to be read behind its name: `gives as many tokens as ...`."""
    function: Callable[[Subject], None]


CHECKS: list[Check] = []


def check(*kinds: str) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Take a function in as a check of these kinds of components; its name, with spaces, is the check's."""

    def taken_in(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
        says = (function.__doc__ or "").strip().splitlines()[0].rstrip(".")
        CHECKS.append(Check(function.__name__.replace("_", " "), kinds, says, function))
        return function

    return taken_in


@dataclass(frozen=True)
class Bound:
    """A check of one component: calling it raises Violation, or SkipTest, which pytest reports as skipped."""

    check: Check
    subject: Subject

    def __str__(self) -> str:
        return self.check.name

    def __call__(self) -> None:
        __tracebackhide__ = True  # pytest shows where the plugin raises, and nothing of what led there
        outcome = self.outcome()
        if outcome.skipped:
            raise unittest.SkipTest(outcome.skipped)
        if outcome.problem:
            sentence = f"{self.subject.kind} {self.subject.entry.name}: {self}: {outcome.problem}"
            raise Violation(sentence) from outcome.error

    def outcome(self) -> Outcome:
        """Make the check. What the component prints meanwhile is nobody's concern here, and goes nowhere."""
        start = time.perf_counter()
        with redirect_stdout(log_file()), redirect_stderr(log_file()):
            found = self._outcome()
        return replace(found, seconds=time.perf_counter() - start)

    def _outcome(self) -> Outcome:
        try:
            self.check.function(self.subject)
        except NotHere as reason:
            return Outcome(self.check, skipped=str(reason))
        except Violation as violation:
            return Outcome(self.check, problem=str(violation), error=violation.__cause__)
        except (Exception, SystemExit) as error:  # whatever a stranger's code raises is what there is to say of it
            return Outcome(self.check, problem=f"raises {described(error, self.subject)}", error=error)
        return Outcome(self.check)


def log_file() -> io.TextIOWrapper:
    """A place for output that nobody reads, with all that `sys.stdout` has: an encoding and a `buffer`, too."""
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8")


@dataclass(frozen=True)
class Outcome:
    """What came of a check: nothing wrong, a ``problem`` in a sentence, or why it was ``skipped``."""

    check: Check = field(repr=False)
    problem: str = ""
    skipped: str = ""
    seconds: float = 0.0
    error: BaseException | None = field(default=None, repr=False)
    """What the component raised, if that is the problem."""

    @property
    def result(self) -> str:
        """``passed``, ``failed`` or ``skipped``."""
        return "failed" if self.problem else "skipped" if self.skipped else "passed"


@contextmanager
def doing(what: str, subject: Subject) -> Iterator[None]:
    """What is raised within the block is a Violation that says at what: ``fails in bf16: RuntimeError: ...``."""
    try:
        yield
    except (Violation, NotHere):
        raise
    except (Exception, SystemExit) as error:
        raise Violation(f"fails {what}: {described(error, subject)}") from error


def described(error: BaseException, subject: Subject) -> str:
    """An error's kind and words, and where in the plugin's own file it was raised."""
    path, frames = subject.entry.plugin.path, traceback.extract_tb(error.__traceback__)
    words = named(error) if isinstance(error, Exception) and str(error) else repr(error)
    if isinstance(error, NotImplementedError):  # a method of a contract that was left out
        words += f" in `{frames[-1].name}`"
    lines = [frame.lineno for frame in frames if path and frame.filename == path]
    return f"{words} ({Path(path).name}, line {lines[-1]})" if lines else words


def checks_of(component: str | type, kind: str = "", plugins: Sequence[str | Path] = ()) -> list[Bound]:
    """All checks of a component, to be called one by one::

        @pytest.mark.parametrize("check", checks_of("gated_mlp"), ids=str)
        def test_contract(check):
            check()

    One that fails raises Violation; one that cannot be made here is skipped. `pytest -k "imports and quickly"` makes
    one alone.

    component: a registered name, or a class, registered or not. kind: where a name stands for components of several
    kinds, and for a class that no plugin registers. plugins: files to load beside what is installed. Raises
    ConfigError or PluginError where there is no such component.
    """
    return bound_to(find(component, kind, load_plugins([str(file) for file in plugins])))


def bound_to(subject: Subject) -> list[Bound]:
    """The checks of its kind."""
    return [Bound(each, subject) for each in CHECKS if subject.kind in each.kinds]


def check_component(component: str | type, kind: str = "", plugins: Sequence[str | Path] = ()) -> list[Outcome]:
    """Make all checks of a component, and give what came of each. Its arguments are those of ``checks_of``.

    Raises Violation with a line for each check that fails, and what ``checks_of`` raises.
    """
    bound = checks_of(component, kind, plugins)
    outcomes = [each.outcome() for each in bound]
    if failed := [outcome for outcome in outcomes if outcome.problem]:
        subject = bound[0].subject
        said = zip(failed, said_once(failed), strict=True)
        lines = "".join(f"\n- {outcome.check.name}: {problem}" for outcome, problem in said)
        raise Violation(f"{subject.kind} {subject.entry.name}: {len(failed)} of {len(outcomes)} checks fail{lines}")
    return outcomes


def said_once(outcomes: Sequence[Outcome]) -> list[str]:
    """Each one's problem; of one that was said before, where: what does not even open fails a dozen checks."""
    first = {outcome.problem: outcome.check.name for outcome in reversed(outcomes)}
    return [
        outcome.problem
        if first[outcome.problem] == outcome.check.name or not outcome.problem
        else f"the same as `{first[outcome.problem]}`"
        for outcome in outcomes
    ]


def find(component: str | type, kind: str, registries: Registries) -> Subject:
    """The component that is meant, with the registries that it stands in."""
    if kind and kind not in KINDS:
        raise ConfigError(unknown("kind", kind, KINDS))
    if not isinstance(component, str):
        return _find_class(component, kind, registries)
    short = component.rpartition(":")[2]
    suited = [registry for registry in _of_kind(kind, registries) if any(e.name == short for e in registry)]
    if len(suited) > 1:
        kinds = " or ".join(f"--kind {registry.kind}" for registry in suited)
        raise ConfigError(
            f"{component!r} is the name of components of {len(suited)} kinds: say which by {kinds} (in Python: kind=)"
        )
    if not suited:
        known = {entry.name for registry in _of_kind(kind, registries) for entry in registry}
        failed = "".join(
            f"\n  Not loaded: {plugin.path}: {plugin.error}" for plugin in registries.plugins if plugin.error
        )
        raise ConfigError(f"{unknown(kind or 'component', component, known)}{failed}")
    return Subject(suited[0].kind, suited[0].find(component), registries)


def _of_kind(kind: str, registries: Registries) -> Iterator[Registry]:
    return (registry for registry in registries if kind in ("", registry.kind))


def _find_class(cls: type, kind: str, registries: Registries) -> Subject:
    for registry in _of_kind(kind, registries):
        for entry in registry:
            if entry.cls is cls:
                return Subject(registry.kind, entry, registries)
    if not kind:
        raise PluginError(f"{cls.__qualname__} is registered by no plugin: say what it is by kind=, one of {KINDS}")
    (registry,) = _of_kind(kind, registries)
    plugin = Plugin(cls.__module__, cls.__module__, "", "", "")
    registry.register(name := cls.__name__.lower(), cls, plugin)
    return Subject(kind, registry.find(f"{plugin.module}:{name}"), registries)
