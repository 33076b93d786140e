"""Every plugin is imported whenever any component is named: quickly, therefore, and without a trace."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import requires
from typing import Any

from nanovlm.registry import Plugin
from nanovlm.testing.checks import KINDS, NotHere, Subject, Violation, check
from nanovlm.testing.models import few

MOST_SECONDS = 1.0
Place = tuple[str, str]  # a plugin's module, and its file where it was given by path: else it is found by its name
BEFORE = dict(os.environ)  # any plugin is loaded in this process, which may have changed it

# Run in a process of its own, where each plugin is imported in a fork: by itself, as if it were the only one.
PROGRAM = """
import importlib.util, json, os, random, sys, threading, time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import numpy, torch, nanovlm
import rich.progress  # which itself draws from Python's generator

def state():
    return {
        "the random state of torch": torch.get_rng_state().tolist(),
        "the random state of numpy": repr(numpy.random.get_state()),
        "the random state of Python": repr(random.getstate()),
        "torch's default dtype": str(torch.get_default_dtype()),
        "torch's default device": str(torch.get_default_device()),
        "torch's number of threads": torch.get_num_threads(),
        "whether torch computes gradients": torch.is_grad_enabled(),
        "the environment (os.environ)": dict(os.environ),
        "the search path (sys.path)": list(sys.path),
        "the working directory": os.getcwd(),
        "the running threads": len(threading.enumerate()),
    }

def packages():
    return {name.partition(".")[0] for name in sys.modules}

def imported(module, file):
    before, there, printed, start = state(), packages(), StringIO(), time.perf_counter()
    with redirect_stdout(printed), redirect_stderr(printed):
        spec = None if file else importlib.util.find_spec(module)  # imports the package that a module stands in
        spec = spec or importlib.util.spec_from_file_location("plugin", file)
        plugin = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(plugin)
    seconds, after = time.perf_counter() - start, state()
    return {
        "seconds": seconds,
        "imported": sorted(packages() - there),
        "changed": [what for what in before if before[what] != after[what]],
        "printed": printed.getvalue(),
    }

for module, file in json.loads(sys.argv[1]):
    if hasattr(os, "fork") and os.fork():
        os.wait()
        continue
    try:
        found = imported(module, file)
    except BaseException as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps([module, file, found]), flush=True)
    if hasattr(os, "fork"):
        os._exit(0)
"""


@check(*KINDS)
def imports_quickly(subject: Subject) -> None:
    """is imported in a moment, without the heavy libraries: those belong into the functions that need them."""
    found = _imported_alone(subject)
    if heavy := sorted(_libraries() & set(found["imported"])):
        raise Violation(f"imports {few(heavy)} as soon as it is imported: import it in the function that needs it")
    if found["seconds"] > MOST_SECONDS:
        raise Violation(
            f"takes {found['seconds']:.1f} s to import, where {MOST_SECONDS:.0f} s is the most: move what takes long "
            "into the functions that need it"
        )


@check(*KINDS)
def imports_without_a_trace(subject: Subject) -> None:
    """prints nothing and changes nothing of the process when it is imported."""
    found = _imported_alone(subject)
    if found["changed"]:
        raise Violation(f"changes {few(found['changed'])} when it is imported: a module only defines")
    if found["printed"]:
        raise Violation(f"prints {found['printed'].strip()[:80]!r} when it is imported")


def _libraries() -> set[str]:
    """What nanovlm depends on, and itself imports only in the functions that need it: it takes a second or more."""
    names = [re.match(r"[\w-]+", requirement) for requirement in requires("nanovlm") or ()]
    return {name.group().replace("-", "_") for name in names if name}


def start_importing(subject: Subject) -> None:
    """Begin with the import checks' seconds in a process of its own, while other checks are made in this one."""
    if subject.entry.plugin.sha256:
        _started(_places(subject))


def _imported_alone(subject: Subject) -> dict[str, Any]:
    """What importing the subject's plugin did."""
    own = subject.entry.plugin
    if not own.sha256:
        raise NotHere("no plugin registers it, so there is nothing to import")
    nothing = {"error": "it ends the process"}
    found = _in_a_fresh_process(_places(subject)).get(_place(own, subject), nothing)
    if error := found.get("error"):
        raise Violation(f"cannot be imported in a process of its own: {error}")
    return found


def _place(plugin: Plugin, subject: Subject) -> Place:
    return plugin.module, plugin.path if plugin.path in subject.registries.files else ""


def _places(subject: Subject) -> tuple[Place, ...]:
    together = hasattr(os, "fork")  # a process that is shared by all saves seconds for each
    others = [plugin for plugin in subject.registries.plugins if plugin.sha256 and not plugin.error and together]
    return tuple(dict.fromkeys(_place(plugin, subject) for plugin in (*others, subject.entry.plugin)))


@cache
def _started(places: tuple[Place, ...]) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", PROGRAM, json.dumps(places)]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=BEFORE)


@cache
def _in_a_fresh_process(places: tuple[Place, ...]) -> dict[Place, dict[str, Any]]:
    """What importing did, by place; nothing of a plugin that ended its process."""
    written, _ = _started(places).communicate()
    lines = (json.loads(line) for line in written.splitlines())
    return {(module, file): found for module, file, found in lines}
