import importlib.metadata
import json
import re
from pathlib import Path

import pytest
from command import nanovlm
from plugin_files import Site, plugin

from nanovlm import load_plugins
from nanovlm.cli.listed_experiments import first_sentence, listed_experiments

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Their `sum`, and their own `pixel_shuffle`, in an installed distribution; and a file dropped into the folder."""
    site = Site(tmp_path, monkeypatch)
    says = "nanovlm_contract = 1"
    site.install("their-plugins", {"their_sum": says + plugin("sum"), "their_shuffle": plugin("pixel_shuffle")})
    site.drop("dropped", plugin("drop"))
    yield site
    site.forget()


def test_the_list_shows_every_component_its_options_and_its_origin():
    out = nanovlm("list").out
    for registry in load_plugins():
        of_kind = out.partition(f"{registry.kind} ")[2]
        for entry in registry:
            row = next(line for line in of_kind.splitlines() if entry.name in line.split())
            assert entry.doc in row
            assert row.rstrip().endswith(f"nanovlm {importlib.metadata.version('nanovlm')}")
            assert all(option in out for option in entry.cls.Config.model_fields)


@pytest.mark.parametrize("arguments", [(), ("smollm2",), ("--experiments",)])
def test_on_eighty_columns_nothing_is_cut_off_and_no_word_is_broken(arguments):
    narrow, wide = (nanovlm("list", *arguments, columns=columns).out for columns in (80, 240))
    assert max(map(len, narrow.splitlines())) <= 80
    assert set(re.findall(r"[\w.]+", narrow)) == set(re.findall(r"[\w.]+", wide.replace("\u2026", "")))


def test_one_component_is_shown_with_what_its_options_mean():
    out = nanovlm("list", "shapes").out
    for piece in ("dataset shapes: Questions about coloured shapes", "plugins/shapes.py (in nanovlm's own folder)"):
        assert piece in out
    assert "  train_size: int = 50000\n      Samples in the train split.\n" in out
    assert "resample: Literal['nearest', 'bilinear', 'bicubic', 'lanczos'] = 'bicubic'" in nanovlm("list", "siglip").out


def test_types_are_spelled_without_their_modules():
    printed = nanovlm("list", "smollm2").out
    assert "Llama3Scaling | None" in printed
    assert "nanovlm_plugins." not in printed


def test_an_option_that_is_a_mapping_is_followed_by_its_own():
    rows = re.findall(r"^  ([\w.]+): (.*)", nanovlm("list", "smollm2").out, re.MULTILINE)
    names = [name for name, _ in rows]
    start = names.index("lora")
    assert names[start : start + 5] == ["lora", "lora.rank", "lora.alpha", "lora.dropout", "lora.targets"]
    assert dict(rows)["rope_scaling.factor"] == "float (required)"


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
        assert component["plugin"].keys() == {"module", "distribution", "version", "path", "contract", "default"}
        assert component["plugin"]["default"]


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
    (failed,) = json.loads(nanovlm("list", "--json").out)["failed"]
    assert "No module named 'no_such_module'" in failed["error"]
    assert (failed["distribution"], failed["default"]) == ("no_such_module", False)
    out = nanovlm("list").out
    assert "not loaded" in out
    assert "ModuleNotFoundError: No module named 'no_such_module'" in out


def test_each_plugin_is_shown_with_its_origin(site, rival):
    out = nanovlm("list", "--plugin", rival).out
    row = {name: next(line for line in out.splitlines() if line.split()[:1] == [name]) for name in ("sum", "mlp")}
    assert row["sum"].rstrip().endswith("their-plugins 1.2")
    assert row["mlp"].rstrip().endswith("nanovlm 0.1.0")
    assert str(site.defaults / "dropped.py")[:40] in out  # folded, if it is long
    one = {name: nanovlm("list", name, "--plugin", rival).out for name in ("sum", "drop", "shapes")}
    assert f"from their-plugins 1.2, {site.folder / 'their_sum.py'}, written for contract 1\n" in one["sum"]
    assert f"from the file {site.defaults / 'dropped.py'}\n" in one["drop"]
    assert f"from the file {rival}\n" in one["shapes"]
    assert f"from nanovlm 0.1.0, {ROOT / 'plugins' / 'shapes.py'} (in nanovlm's own folder)\n" in one["shapes"]
    found = {each["name"]: each["plugin"] for each in json.loads(nanovlm("list", "--json").out)["components"]}
    assert (found["sum"]["distribution"], found["sum"]["version"], found["sum"]["contract"]) == (
        "their-plugins",
        "1.2",
        1,
    )
    assert (found["drop"]["version"], found["drop"]["path"]) == ("", str(site.defaults / "dropped.py"))
    assert [found[name]["default"] for name in ("sum", "drop", "mlp")] == [False, False, True]


def test_a_name_that_two_plugins_claim_is_shown_as_it_must_be_written(site):
    out = nanovlm("list").out
    assert "written nanovlm:pixel_shuffle" in out
    assert "written their-plugins:pixel_shuffle" in out
    one = nanovlm("list", "pixel_shuffle").out
    assert "several plugins claim this name: write 'their-plugins:pixel_shuffle'" in one
    theirs = nanovlm("list", "their-plugins:pixel_shuffle").out
    assert "from their-plugins" in theirs
    assert "from nanovlm" not in theirs


def test_a_plugin_that_does_not_load_is_listed_with_its_version(tmp_path, monkeypatch):
    site = Site(tmp_path, monkeypatch)
    site.install("broken-plugins", {"their_module": "nanovlm_contract = 2"})
    assert (
        f"not loaded: {site.folder / 'their_module.py'} (broken-plugins 1.2)\n  was written for" in nanovlm("list").out
    )
    site.forget()


def test_the_experiments_that_come_with_nanovlm_are_listed():
    rows = {row["name"]: row for row in json.loads(nanovlm("list", "--experiments", "--json").out)}
    assert {"quickstart", "baseline", "projectors"} <= rows.keys()
    assert rows["quickstart"] | {"path": "", "asks": ""} == {
        "name": "quickstart",
        "asks": "",
        "components": "siglip + pixel_shuffle + smollm2",
        "data": "shapes",
        "budget": "1,000 steps",
        "command": "nanovlm train quickstart",
        "path": "",
    }
    assert (rows["baseline"]["budget"], rows["baseline"]["data"]) == ("5 epochs", "the_cauldron; asked: mmstar")
    assert rows["projectors"]["components"] == "siglip + (pixel_shuffle or average_pool or resampler or mlp) + smollm2"
    assert rows["projectors"]["budget"] == "12 runs of 600 steps"
    assert rows["projectors"]["command"] == "nanovlm ablate projectors"
    assert rows["projectors"]["asks"] == "Which projector?"
    out = nanovlm("list", "--experiments").out
    assert all(piece in out for row in rows.values() for piece in (row["name"], row["command"], row["asks"]))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# yaml-language-server: $schema=x\n# Does v0.1 help\n# here? Yes.\nseed: 1", "Does v0.1 help here?"),
        ("# One sentence without an end\nseed: 1  # no comment of the file", "One sentence without an end"),
        ("seed: 1\n# Too late.", ""),
    ],
)
def test_an_experiment_asks_what_its_first_sentence_says(tmp_path, text, sentence):
    (tmp_path / "mine.yaml").write_text(text)
    assert first_sentence(tmp_path / "mine.yaml") == sentence


def test_every_experiment_begins_with_what_it_asks():
    assert [listed.name for listed in listed_experiments() if not listed.asks.endswith((".", "?"))] == []


PAGES = {
    "plugins/README.md": ("list", "--markdown"),
    "experiments/README.md": ("list", "--experiments", "--markdown"),
}


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_of_the_pages_are_fresh(page, site, tmp_path):
    """Whatever else is installed."""
    command = f"nanovlm {' '.join(PAGES[page])} {page}"
    kept = (ROOT / page).read_text(encoding="utf-8")
    made = nanovlm(*PAGES[page], "-").out
    assert made.startswith(f"<!-- made by: {command} -->\n")
    assert made.endswith("<!-- end -->\n")
    assert made in kept, f"the table is not fresh: run `{command}`"
    stale = tmp_path / "README.md"
    stale.write_text(re.sub(r"^\|.*\n", "", kept, flags=re.MULTILINE), encoding="utf-8")
    assert nanovlm(*PAGES[page], stale).status == 0
    assert stale.read_text(encoding="utf-8") == kept


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_links_to_is_there(page):
    linked = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert linked
    assert [path for path in linked if not ((ROOT / page).parent / path).exists()] == []


def test_a_page_without_a_place_for_the_table_is_left_as_it_is(tmp_path):
    (tmp_path / "page.md").write_text("# A page\n<!-- end -->\n")
    done = nanovlm("list", "--markdown", tmp_path / "page.md")
    assert done.status == 2
    assert "page.md: it has no place for the table, which is a line <!-- made by: nanovlm list --markdown" in done.err
    assert (tmp_path / "page.md").read_text() == "# A page\n<!-- end -->\n"
    done = nanovlm("list", "--markdown", tmp_path / "no.md")
    assert (done.status, "no.md: cannot be read: No such file" in done.err) == (2, True)


@pytest.mark.parametrize("option", [("--json",), ("--plugin", "mine.py")])
def test_a_page_is_about_what_comes_with_nanovlm_and_no_json(option):
    done = nanovlm("list", "--markdown", "-", *option)
    assert (done.status, done.out) == (2, "")
    assert "--markdown writes a table of what comes with nanovlm: leave --plugin and --json out" in done.err


@pytest.mark.parametrize("option", [("--experiments",), ("--markdown", "-")])
def test_one_component_and_a_list_of_all_do_not_go_together(option):
    done = nanovlm("list", "mlp", *option)
    assert done.status == 2
    assert "'mlp' is one component, and --experiments and --markdown list them all: leave it out" in done.err
