"""A component of every kind in every form, written once for all tests."""

import pytest
from newly_written import FORMS, KINDS, New, make_clone, name_of

from nanovlm import load_plugins
from nanovlm.plugins import Registries
from nanovlm.scaffold import scaffold


@pytest.fixture(scope="session")
def everything(tmp_path_factory) -> dict[tuple[str, str], New]:
    """By kind and form. One clone and one folder hold all kinds; every package is a folder of its own."""
    top = tmp_path_factory.mktemp("new")
    folders = {"clone": make_clone(top / "clone"), "flat": top / "flat", "package": top}
    made = {}
    for form, folder in folders.items():
        for kind in KINDS:
            name = name_of(kind, form)
            written = scaffold(kind, name, folder, package=form == "package")
            own = folder / f"nanovlm-{name.replace('_', '-')}" if form == "package" else folder
            made[kind, form] = New(kind, form, name, own, written)
    return made


@pytest.fixture(scope="session")
def new_registries(everything) -> Registries:
    """With all of them, each from its file."""
    return load_plugins([str(new.file(".py")) for new in everything.values()])


@pytest.fixture(params=FORMS)
def form(request) -> str:
    return request.param


@pytest.fixture(params=KINDS)
def new(request, form, everything) -> New:
    return everything[request.param, form]
