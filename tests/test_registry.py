import pytest
from torch import nn

from nanovlm import ComponentConfig, ConfigError, PluginError
from nanovlm.registry import Plugin, Registry


class Bridge(nn.Module):
    class Config(ComponentConfig):
        factor: int = 2
        """How many become one."""

    def __init__(self, config: Config, **context) -> None:
        super().__init__()
        self.config, self.context = config, context


class Other(Bridge):
    pass


def plugin(module: str, distribution: str = "nanovlm", path: str = "", error: str = "") -> Plugin:
    return Plugin(module, distribution, "1.0", path or f"/{distribution}/{module}.py", "", error)


def registry(*claims: tuple[str, Plugin], kind: str = "projector") -> Registry:
    filled = Registry(kind)
    for i, (name, origin) in enumerate(claims):
        filled.register(name, type(f"Bridge{i}", (Bridge,), {}), origin)
    return filled


HERE, THERE = plugin("nanovlm_plugins.bridge"), plugin("their.bridges", "theirs")


def refused(filled: Registry, name: str, where: str = "") -> str:
    with pytest.raises((ConfigError, PluginError)) as caught:
        filled.find(name, where)
    return str(caught.value)


def test_a_component_is_built_from_its_options_and_its_context():
    built = registry(("bridge", HERE)).build("bridge", {"factor": 4}, grid="grid")
    assert (built.config.factor, built.context) == (4, {"grid": "grid"})


def test_a_registry_lists_its_entries_by_name():
    filled = registry(("b", HERE), ("a", THERE), ("a", HERE))
    assert [(entry.name, entry.plugin) for entry in filled] == [("a", HERE), ("a", THERE), ("b", HERE)]


@pytest.mark.parametrize(("where", "place"), [("", "projector"), ("trackers.0", "trackers.0")])
def test_an_unknown_name_comes_with_the_nearest_and_the_known(where, place):
    message = refused(registry(("bridge", HERE), ("average", THERE), ("average", HERE)), "bridg", where)
    first, second = message.splitlines()
    assert first == f"{place}: unknown projector 'bridg'. Did you mean 'bridge'?"
    assert second == "  Known here: average, bridge"


def test_an_empty_registry_knows_nothing():
    assert refused(registry(), "bridge").endswith("Known here: nothing")


def test_a_plugin_that_did_not_load_may_be_the_one_that_was_meant():
    filled = registry(("bridge", HERE))
    filled.failed.append(plugin("broken", path="/a/broken.py", error="NameError: name 'x' is not defined (line 3)"))
    expected = "\n  Not loaded: /a/broken.py: NameError: name 'x' is not defined (line 3)"
    assert refused(filled, "tunnel").endswith(expected)


def test_a_name_with_two_claimants_names_both_and_what_to_write():
    filled = registry(("bridge", HERE), ("bridge", THERE))
    message = refused(filled, "bridge", "projector")
    assert message.startswith("projector: projector 'bridge' is claimed by 2 plugins: write ")
    assert f"'nanovlm:bridge' ({HERE.path}) or 'theirs:bridge' ({THERE.path})" in message


@pytest.mark.parametrize("origin", ["theirs", "bridges", "their.bridges", THERE.path])
def test_a_distribution_a_module_or_a_path_chooses(origin):
    entry = registry(("bridge", HERE), ("bridge", THERE)).find(f"{origin}:bridge")
    assert (entry.plugin, entry.cls.__name__) == (THERE, "Bridge1")


def test_an_origin_may_stand_where_it_need_not():
    filled = registry(("bridge", HERE))
    assert filled.find("nanovlm:bridge") == filled.find("bridge")


RIVALS = {
    "two distributions": (HERE, THERE),
    "two modules of one distribution": (plugin("all.bridge"), plugin("all.tunnel")),
    "two modules of one name": (plugin("left.bridge"), plugin("right.bridge")),
    "a module called like another's distribution": (plugin("all.b"), plugin("b", "b", "/home/b.py")),
    "two files of one name": (plugin("b", "b", "/left/b.py"), plugin("b", "b", "/right/b.py")),
    "three": (HERE, THERE, plugin("their.tunnel", "theirs")),
}


@pytest.mark.parametrize("rivals", RIVALS.values(), ids=RIVALS)
def test_what_it_says_to_write_chooses(rivals):
    filled = registry(*(("bridge", rival) for rival in rivals))
    choices = refused(filled, "bridge").partition("write ")[2].split(" or ")
    assert len(choices) == len(rivals)
    for choice, rival in zip(choices, rivals, strict=True):
        assert filled.find(choice.split("'")[1]).plugin == rival
        assert rival.path in choice


def test_an_unknown_origin_comes_with_those_that_have_the_name():
    message = refused(registry(("bridge", HERE), ("bridge", THERE), ("average", HERE)), "their:bridge")
    assert "unknown projector 'their:bridge'. Did you mean 'theirs:bridge'?" in message
    assert message.endswith("Known here: nanovlm:bridge, theirs:bridge")


@pytest.mark.parametrize(
    "cls", [type("Bare", (), {}), type("Bare", (), {"Config": dict}), type("Bare", (), {"Config": 3})]
)
def test_a_class_needs_a_config(cls):
    with pytest.raises(PluginError, match=r"projector 'b': Bare needs a nested `class Config\(ComponentConfig\)`"):
        Registry("projector").register("b", cls, HERE)


def test_what_is_no_class_is_shown():
    with pytest.raises(PluginError, match="projector 'b': 3 needs a nested"):
        Registry("projector").register("b", 3, HERE)


@pytest.mark.parametrize("name", ["", "a:b", 3, None])
def test_a_name_is_a_word_without_a_colon(name):
    with pytest.raises(PluginError, match=f"projector {name!r}: a name is a word without a colon"):
        Registry("projector").register(name, Bridge, HERE)


def test_one_plugin_claims_a_name_once():
    filled = registry(("bridge", HERE))
    with pytest.raises(PluginError, match="projector 'bridge' is registered twice"):
        filled.register("bridge", Other, HERE)


@pytest.mark.parametrize(
    ("kind", "option"),
    [("projector", "name"), ("tracker", "name"), ("dataset", "name"), ("dataset", "weight"), ("dataset", "limit")],
)
def test_an_option_cannot_be_called_like_a_key_that_the_core_reads(kind, option):
    config = type("Config", (ComponentConfig,), {"__annotations__": {option: int}, option: 3})
    with pytest.raises(PluginError, match=f"{kind} 'b': an option cannot be called '{option}'"):
        Registry(kind).register("b", type("Bare", (), {"Config": config}), HERE)


def test_another_kind_may_use_those_words():
    config = type("Config", (ComponentConfig,), {"__annotations__": {"limit": int}, "limit": 3})
    filled = Registry("projector")
    filled.register("b", type("Bare", (), {"Config": config}), HERE)
    assert filled.configure("b", {"limit": 5}).limit == 5


def test_a_wrong_option_says_where_it_stands():
    filled = registry(("bridge", HERE))
    with pytest.raises(ConfigError) as caught:
        filled.configure("bridge", {"factor": "two"}, "variants.1")
    assert str(caught.value).startswith("variants.1.factor='two': input should be a valid integer")
    assert str(caught.value).endswith("factor: How many become one.")


def test_an_unknown_option_lists_what_may_stand_beside_the_options_too():
    with pytest.raises(ConfigError) as caught:
        registry(("bridge", HERE)).configure("bridge", {"wieght": 2}, also=("weight",))
    assert "projector: unknown option 'wieght'. Did you mean 'weight'?" in str(caught.value)
    assert str(caught.value).endswith("Known here: factor, weight")
