import hashlib
import importlib.metadata
import os
import sys
from pathlib import Path

import nanovlm_plugins
import pytest
from plugin_files import Site, plugin
from tiny import tiny_experiment

import nanovlm
from nanovlm import ConfigError, PatchGrid, PluginError, hookspecs, load_plugins, plugins
from nanovlm.blueprint import Recipe
from nanovlm.plugins import Registries
from nanovlm.registry import Registry

CORE = sorted(Path(nanovlm.__file__).parent.rglob("*.py"))
FOLDER = Path(nanovlm_plugins.__file__).parent
HOOKS = [name for name in vars(hookspecs) if name.startswith("register_")]


@pytest.fixture
def site(tmp_path, monkeypatch):
    site = Site(tmp_path, monkeypatch)
    yield site
    site.forget()


@pytest.fixture
def load_file(tmp_path):
    """Load a plugin given by path."""

    def load_file(source: str, name: str = "mine.py") -> Registries:
        file = tmp_path / name
        file.write_text(source)
        return load_plugins([str(file)])

    return load_file


def error_of(load, *arguments) -> str:
    with pytest.raises(PluginError) as caught:
        load(*arguments)
    return str(caught.value)


def of(registries: Registries, module: str):
    """The plugin of this module, which is there once."""
    (found,) = [plugin for plugin in registries.plugins if plugin.module == module]
    return found


def names(registry: Registry) -> list[str]:
    return [entry.name for entry in registry]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_registry(hook, registries):
    assert isinstance(getattr(registries, hook.removeprefix("register_")), Registry)


def test_every_registry_has_a_hook(registries):
    assert [f"register_{registry.kind}s" for registry in registries] == HOOKS


def test_a_hook_fills_its_own_registry_and_no_other(load_file, registries):
    for hook in HOOKS:
        filled = load_file(plugin("new_one", hook))
        assert [f"register_{registry.kind}s" for registry in filled if "new_one" in names(registry)] == [hook]


def test_every_file_in_the_folder_is_found_and_loads(registries):
    modules = {f"nanovlm_plugins.{file.stem}" for file in FOLDER.glob("*.py") if file.stem != "__init__"}
    found = {plugin.module: plugin for plugin in registries.plugins if plugin.distribution == "nanovlm"}
    assert found.keys() == modules
    assert [plugin for plugin in found.values() if plugin.error] == []


def test_a_plugin_is_recorded_with_its_version_its_file_and_its_hash(registries):
    plugin = of(registries, "nanovlm_plugins.pixel_shuffle")
    assert (plugin.distribution, plugin.version) == ("nanovlm", "0.1.0")
    assert plugin.path == str(FOLDER / "pixel_shuffle.py")
    assert plugin.sha256 == hashlib.sha256((FOLDER / "pixel_shuffle.py").read_bytes()).hexdigest()


def test_a_file_dropped_into_the_folder_is_found_at_once(site):
    site.drop("dropped", plugin("sum"))
    entry = load_plugins().projectors.find("sum")
    assert (entry.plugin.module, entry.plugin.distribution) == ("nanovlm_plugins.dropped", "dropped")
    assert entry.plugin.origin == str(site.defaults / "dropped.py")


def test_an_installed_distribution_is_found(site):
    site.install("their-plugins", {"their_module": plugin("sum")})
    registries = load_plugins()
    found = registries.projectors.find("sum").plugin
    assert (found.module, found.distribution, found.version) == ("their_module", "their-plugins", "1.2")
    assert found.path == str(site.folder / "their_module.py")
    built = registries.projectors.build("sum", {}, grid=PatchGrid(2, 2, 3), text_dim=5)
    assert built.linear.out_features == 5


def test_plugins_come_in_a_fixed_order(site, load_file):
    site.install("their-plugins", {"their_module": plugin("sum")})
    site.drop("dropped", plugin("drop"))
    order = [plugin.module for plugin in load_file(plugin("file")).plugins]
    assert order[-2:] == ["their_module", "mine"]
    assert order[:-2] == sorted(order[:-2])
    assert "nanovlm_plugins.dropped" in order


def test_an_entry_point_may_name_an_object_in_a_module(site):
    source = (
        "import types\n" + plugin("sum") + "\nhooks = types.SimpleNamespace(register_projectors=register_projectors)\n"
    )
    site.install("their-plugins", {"their_module": source}, {"one": "their_module:hooks"})
    assert load_plugins().projectors.find("their-plugins:sum").plugin.module == "their_module"


def test_an_entry_point_that_stands_twice_is_loaded_once(site):
    site.install("their-plugins", {"their_module": plugin("sum")}, {"one": "their_module", "two": "their_module"})
    assert load_plugins().projectors.find("sum").plugin.error == ""


BROKEN = {
    "missing import": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module' (line 1)"),
    "syntax": ("def (:", "SyntaxError: invalid syntax (their_module.py, line 1)"),
    "its own error": ("\n\nraise ValueError('first\\nsecond')", "ValueError: first second (line 3)"),
    "exit": ("import sys\nsys.exit(3)", "SystemExit: 3 (line 2)"),
    "registers nothing": ("answer = 42", "registers nothing; a plugin implements, under @hookimpl, one of register_"),
    "no decorator": (plugin().replace("@hookimpl", ""), "registers nothing; a plugin implements, under @hookimpl"),
    "misspelt hook": (
        plugin(hook="register_projektors"),
        "unknown hook 'register_projektors'. Did you mean 'register_projectors'?\n  Known here: register_datasets, ",
    ),
    "wrong argument": (
        plugin(argument="add"),
        "{'add'} are declared in the hookimpl but can not be found in the hookspec",
    ),
    "fails midway": (
        plugin(body="register('half', Sum); register('other', Sum.Konfig)"),
        "AttributeError: type object 'Sum' has no attribute 'Konfig' (line",
    ),
    "no config": (
        plugin(body="register('half', Sum); register('bare', nn.Linear)"),
        "projector 'bare': Linear needs a nested",
    ),
    "one name twice": (
        plugin(body="register('half', Sum); register('half', Sum)"),
        "projector 'half' is registered twice",
    ),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_stops_nobody_and_says_why(site, source, reason, registries):
    site.install("broken-plugins", {"their_module": source})
    site.install("sound-plugins", {"z_module": plugin("sound")})
    loaded = load_plugins()
    assert reason in of(loaded, "their_module").error
    assert [names(registry) for registry in loaded if registry is not loaded.projectors] == [
        names(registry) for registry in registries if registry is not registries.projectors
    ]
    assert names(loaded.projectors) == sorted([*names(registries.projectors), "sound"])


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_named_when_something_unknown_is_asked_for(site, source, reason):
    site.install("broken-plugins", {"their_module": source})
    loaded = load_plugins()
    for registry in loaded:
        with pytest.raises(ConfigError) as caught:
            registry.find("half")
        assert f"Not loaded: {site.folder / 'their_module.py'}: {of(loaded, 'their_module').error}" in str(caught.value)


def test_a_wrong_argument_says_what_is_right(site):
    site.install("broken-plugins", {"their_module": plugin(argument="add")})
    assert of(load_plugins(), "their_module").error.endswith("; a hook takes one argument, `register`")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("no_such_package.module", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("raising.module", "ZeroDivisionError: division by zero"),
        ("exiting.module", "SystemExit"),
        ("their_module:missing", "AttributeError: module 'their_module' has no attribute 'missing'"),
        ("!", "Error"),
    ],
)
def test_an_entry_point_that_leads_nowhere_stops_nobody(site, value, reason):
    for package, source in {"raising": "1 / 0", "exiting": "raise SystemExit"}.items():
        (site.folder / package).mkdir()
        (site.folder / package / "__init__.py").write_text(source)
    site.install("broken-plugins", {"their_module": plugin("sum")}, {"entry": value})
    loaded = load_plugins()
    (failed,) = [found for found in loaded.plugins if found.error]
    assert reason in failed.error
    assert failed.distribution == "broken-plugins"
    assert "broken-plugins" in failed.path or "their_module.py" in failed.path
    assert "sum" not in names(loaded.projectors)


def test_a_file_given_by_path_is_loaded(load_file, tmp_path):
    registries = load_file(plugin("sum"))
    found = registries.projectors.find("sum").plugin
    assert (found.module, found.path) == ("mine", str(tmp_path / "mine.py"))
    assert registries.files == (str(tmp_path / "mine.py"),)


def test_a_relative_path_is_remembered_whole(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(plugin("sum"))
    monkeypatch.chdir(tmp_path)
    assert load_plugins(["mine.py"]).files == (str(tmp_path / "mine.py"),)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    assert error_of(load_plugins, [tmp_path / "mine.py"]) == f"--plugin {tmp_path / 'mine.py'}: there is no such file"


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_given_by_path_is_an_error(load_file, tmp_path, source, reason):
    message = error_of(load_file, source, "their_module.py")
    assert message.startswith(f"--plugin {tmp_path / 'their_module.py'} does not load: ")
    assert reason in message


def test_a_file_must_be_python(load_file):
    assert error_of(load_file, plugin("sum"), "mine.txt").endswith("a plugin is a Python file; its name ends in .py")


def test_a_file_given_twice_is_loaded_once(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(plugin("sum"))
    assert len(load_plugins([str(file), str(file)]).files) == 1


def test_a_default_given_by_path_claims_nothing_twice():
    assert load_plugins([str(FOLDER / "pixel_shuffle.py")]).projectors.find("pixel_shuffle")


def test_two_files_of_one_name_are_two_plugins(tmp_path):
    files = [tmp_path / folder / "mine.py" for folder in ("left", "right")]
    for file in files:
        file.parent.mkdir()
        file.write_text(plugin(file.parent.name))
    registries = load_plugins([str(file) for file in files])
    left, right = (registries.projectors.find(name).cls for name in ("left", "right"))
    assert left.__module__ != right.__module__


@pytest.mark.parametrize(
    ("contract", "reason"),
    [
        ("2", "was written for contract 2, and this nanovlm (0.1.0) has 1: upgrade nanovlm, or {} for contract 1"),
        ("0", "was written for contract 0, and this nanovlm (0.1.0) has 1: {} for contract 1"),
        ("'1'", "nanovlm_contract = '1' is no whole number; write nanovlm_contract = 1"),
        ("1.0", "nanovlm_contract = 1.0 is no whole number; write nanovlm_contract = 1"),
        ("True", "nanovlm_contract = True is no whole number; write nanovlm_contract = 1"),
    ],
)
def test_a_plugin_for_another_contract_is_refused_by_name(site, load_file, contract, reason):
    source = f"nanovlm_contract = {contract}{plugin('sum')}"
    site.install("their-plugins", {"their_module": source})
    loaded = load_plugins()
    assert of(loaded, "their_module").error == reason.format("install a version of their-plugins")
    assert "sum" not in names(loaded.projectors)
    assert error_of(load_file, source).endswith(f"mine.py does not load: {reason.format('change the file to one')}")


@pytest.mark.parametrize("says", ["nanovlm_contract = 1", "nanovlm_contract = None", ""])
def test_a_plugin_says_its_contract_or_nothing(site, says):
    site.install("their-plugins", {"their_module": says + plugin("sum")})
    contract = 1 if "1" in says else None
    found = load_plugins().projectors.find("sum").plugin
    assert found.contract == found.provenance()["contract"] == contract


def test_the_module_speaks_for_an_object_in_it(site):
    hooks = "import types\nhooks = types.SimpleNamespace(register_projectors=register_projectors)\n"
    source = f"nanovlm_contract = 2{plugin('sum')}\n{hooks}"
    site.install("their-plugins", {"their_module": source}, {"one": "their_module:hooks"})
    assert of(load_plugins(), "their_module").error.startswith("was written for contract 2")


def test_the_contract_is_public():
    assert nanovlm.CONTRACT == hookspecs.CONTRACT == 1


def test_an_origin_is_a_distribution_with_its_version_or_a_file(site, load_file, tmp_path):
    site.install("their-plugins", {"their_module": plugin("sum")})
    site.drop("dropped", plugin("drop"))
    projectors = load_file(plugin("file")).projectors
    origins = {name: projectors.find(name).plugin.origin for name in ("pixel_shuffle", "sum", "drop", "file")}
    assert origins == {
        "pixel_shuffle": "nanovlm 0.1.0",
        "sum": "their-plugins 1.2",
        "drop": str(site.defaults / "dropped.py"),
        "file": str(tmp_path / "mine.py"),
    }


def test_a_file_called_like_an_installed_distribution_does_not_pass_for_it(load_file, tmp_path):
    found = load_file(plugin("sum"), "pluggy.py").projectors.find("sum").plugin
    assert (found.version, found.origin) == ("", str(tmp_path / "pluggy.py"))


@pytest.mark.parametrize(
    ("listed", "origin"), [(["mlp", "sum"], "nanovlm 0.1.0"), (["mlp"], "sum.py"), ([], "nanovlm 0.1.0")]
)
def test_a_wheel_knows_its_own_files_and_a_checkout_takes_all_for_its_own(monkeypatch, tmp_path, listed, origin):
    """What an installer wrote down of a wheel; of an editable install it knows no file of the folder."""
    (tmp_path / "sum.py").write_text(plugin("sum"))
    record = "".join(f"nanovlm_plugins/{name}.py,sha256=x,1\n" for name in listed) + "nanovlm/cli.py,,\n"
    monkeypatch.setattr(nanovlm_plugins, "__path__", [str(tmp_path)])
    monkeypatch.setattr(nanovlm_plugins, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.metadata.PathDistribution, "read_text", lambda self, name: record)
    monkeypatch.setattr(plugins, "_version", lambda distribution: "0.1.0")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    found = load_plugins().projectors.find("sum").plugin
    sys.modules.pop("nanovlm_plugins.sum")
    assert found.origin == (origin if "nanovlm" in origin else str(tmp_path / origin))


@pytest.fixture
def rivals(site):
    """A stranger's pixel_shuffle beside the default one."""
    site.install("their-plugins", {"their_module": plugin("pixel_shuffle")})
    return load_plugins()


def test_two_claimants_of_one_name_are_an_error_that_says_what_to_write(rivals, site):
    with pytest.raises(ConfigError) as caught:
        Recipe.of(tiny_experiment(), rivals)
    message = str(caught.value)
    assert message.startswith("projector: projector 'pixel_shuffle' is claimed by 2 plugins: write ")
    assert f"'nanovlm:pixel_shuffle' ({FOLDER / 'pixel_shuffle.py'})" in message
    assert f"'their-plugins:pixel_shuffle' ({site.folder / 'their_module.py'})" in message


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("nanovlm:pixel_shuffle", "PixelShuffle"),
        ("their-plugins:pixel_shuffle", "Sum"),
        ("their_module:pixel_shuffle", "Sum"),
    ],
)
def test_an_experiment_chooses_by_the_origin(rivals, name, cls):
    recipe = Recipe.of(tiny_experiment(f"projector={{name: '{name}', factor: 4}}"), rivals)
    assert recipe.blueprint.projector.cls.__name__ == cls
    assert recipe.dump()["projector"] == {"name": name, "factor": 4}


def test_an_experiment_chooses_a_file_dropped_into_the_folder_by_its_module(site):
    site.drop("dropped", plugin("pixel_shuffle"))
    recipe = Recipe.of(tiny_experiment("projector={name: 'dropped:pixel_shuffle'}"), load_plugins())
    assert recipe.blueprint.projector.cls.__name__ == "Sum"


def test_a_file_that_was_just_changed_is_read_anew(tmp_path):
    """Of one size, and within one second: Python's cache of translations could not tell them apart."""
    file = tmp_path / "quick.py"
    for hook in ("register_datasets", "register_trackers"):
        file.write_text(plugin("quick_one", hook))
        os.utime(file, (1_000_000_000, 1_000_000_000))
        filled = load_plugins([str(file)])
        assert [f"register_{registry.kind}s" for registry in filled if "quick_one" in names(registry)] == [hook]
    assert [path.name for path in tmp_path.iterdir()] == ["quick.py"]
