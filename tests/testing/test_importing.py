"""What is found out about a plugin's import, in a process of its own."""

import os

import pytest

from nanovlm.testing import importing


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Of a module `plugin` in a package whose `__init__` is this."""

    def imported(init: str) -> dict:
        package = tmp_path / "a_package"
        package.mkdir()
        (package / "__init__.py").write_text(init, encoding="utf-8")
        (package / "plugin.py").write_text("", encoding="utf-8")
        path = os.pathsep.join(filter(None, (str(tmp_path), importing.BEFORE.get("PYTHONPATH"))))
        monkeypatch.setitem(importing.BEFORE, "PYTHONPATH", path)
        place = ("a_package.plugin", "")
        return importing._in_a_fresh_process.__wrapped__((place, ("nanovlm_plugins.mlp", "")))[place]

    yield imported
    importing._started.cache_clear()


def test_a_plugins_package_is_imported_with_it(found):
    of_it = found("import matplotlib, os\nos.environ['A_NAME'] = 'b'\nprint('hello')\n")
    assert "matplotlib" in of_it["imported"]
    assert of_it["changed"] == ["the environment (os.environ)"]
    assert of_it["printed"] == "hello\n"


def test_of_a_sound_one_nothing_is_said(found):
    of_it = found("")
    assert (of_it["imported"], of_it["changed"], of_it["printed"]) == (["a_package"], [], "")
    assert of_it["seconds"] < importing.MOST_SECONDS
