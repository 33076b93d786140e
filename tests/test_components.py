"""Every component keeps its contract, whoever wrote it: a new plugin is tested here without a line being added.

What they are asked stands in nanovlm/testing/. `pytest tests/test_components.py -k NAME` tests one of them.
"""

import pytest

from nanovlm import load_plugins
from nanovlm.testing import Subject
from nanovlm.testing.checks import bound_to

REGISTRIES = load_plugins()
COMPONENTS = [(registry.kind, entry) for registry in REGISTRIES for entry in registry]
CHECKS = [
    pytest.param(check, id=f"{entry.plugin.module}:{entry.name}-{str(check).replace(' ', '_')}")
    for kind, entry in COMPONENTS
    for check in bound_to(Subject(kind, entry, REGISTRIES))
]


@pytest.mark.parametrize("plugin", REGISTRIES.plugins, ids=lambda plugin: plugin.module)
def test_a_default_plugin_loads(plugin):
    assert plugin.error == ""


@pytest.mark.parametrize("check", CHECKS)
def test_a_component_keeps_its_contract(check):
    check()


@pytest.mark.parametrize("kind", [registry.kind for registry in REGISTRIES])
def test_there_is_a_component_of_every_kind(kind):
    assert kind in [kind for kind, _ in COMPONENTS]
