import importlib.metadata
import json

from command import nanovlm

from nanovlm import load_plugins


def test_the_list_shows_every_component_its_options_and_its_origin():
    out = nanovlm("list").out
    for registry in load_plugins():
        for entry in registry:
            row = next(line for line in out.splitlines() if entry.name in line.split())
            assert registry.kind in row
            assert f"nanovlm {importlib.metadata.version('nanovlm')}" in row
            assert all(option in out for option in entry.cls.Config.model_fields)


def test_one_component_is_shown_with_what_its_options_mean():
    out = nanovlm("list", "shapes").out
    for piece in ("dataset shapes: Questions about coloured shapes", "plugins/shapes.py", "train_size", "50000", "int"):
        assert piece in out
    assert "Samples in the train split." in out
    assert "Literal['nearest', 'bilinear', 'bicubic', 'lanczos']" in nanovlm("list", "siglip").out


def test_types_are_spelled_without_their_modules():
    printed = nanovlm("list", "smollm2").out
    assert "Llama3Scaling | None" in printed
    assert "nanovlm_plugins." not in printed


def test_an_option_that_is_a_mapping_is_followed_by_its_own():
    rows = [line.split("│") for line in nanovlm("list", "smollm2").out.splitlines() if line.startswith("│")]
    names = [name for row in rows if (name := row[1].strip())]
    start = names.index("lora")
    assert names[start : start + 5] == ["lora", "lora.rank", "lora.alpha", "lora.dropout", "lora.targets"]
    assert "(required)" in next(row[3] for row in rows if row[1].strip() == "rope_scaling.factor")


def test_a_component_without_options_says_so():
    assert "no options" in nanovlm("list", "mlp").out


def test_the_list_as_json_holds_everything():
    components = json.loads(nanovlm("list", "--json").out)["components"]
    found = {(component["kind"], component["name"]) for component in components}
    assert found == {(registry.kind, entry.name) for registry in load_plugins() for entry in registry}
    factor = next(component for component in components if component["name"] == "pixel_shuffle")["options"][0]
    doc = "r: how many patches are joined along each side."
    assert factor == {"name": "factor", "type": "int", "required": False, "default": 2, "doc": doc}
    for component in components:
        assert component["doc"]
        assert component["plugin"].keys() == {"module", "distribution", "version", "path"}


def test_components_of_one_name_are_all_shown(rival):
    out = nanovlm("list", "shapes", "--plugin", rival).out
    assert "dataset shapes: Questions about" in out
    assert "projector shapes: Another [thing] called shapes." in out
    assert "(required)" in out


def test_options_of_any_kind_are_json(rival):
    found = json.loads(nanovlm("list", "shapes", "--plugin", rival, "--json").out)["components"]
    needed, inner, depth = next(component for component in found if component["kind"] == "projector")["options"]
    assert (needed["required"], needed["default"]) == (True, None)
    assert (inner["required"], inner["default"]) == (False, {"depth": 3})
    assert (depth["name"], depth["type"], depth["default"]) == ("inner.depth", "int", 3)


def test_a_plugin_that_does_not_load_is_listed_with_the_reason(monkeypatch):
    broken = importlib.metadata.EntryPoint("broken", "no_such_module", "nanovlm")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [broken])
    assert "No module named 'no_such_module'" in json.loads(nanovlm("list", "--json").out)["failed"][0]["error"]
    out = nanovlm("list").out
    assert "not loaded" in out
    assert "ModuleNotFoundError: No module named 'no_such_module'" in out
