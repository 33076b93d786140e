"""`nanovlm new` on the command line: what it prints works, and what it refuses it explains."""

import shlex

import nanovlm_plugins
import pytest
from command import nanovlm
from newly_written import KINDS, ROOT, make_clone

from nanovlm import ConfigError
from nanovlm.registry import Entry, Plugin, Registry
from nanovlm.scaffold import scaffold
from nanovlm.scaffold.layout import choose_layout
from nanovlm.scaffold.names import check_free, class_name, snake_case


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """The clone that the running nanovlm comes from, so to say; the working folder is its root."""
    folder = make_clone(tmp_path / "clone")
    monkeypatch.setattr(nanovlm_plugins, "__path__", [*nanovlm_plugins.__path__, str(folder / "plugins")])
    monkeypatch.chdir(folder)
    return folder


def refusal(*arguments: object) -> str:
    done = nanovlm("new", *arguments)
    assert done.status == 2
    assert done.out == ""
    return done.err


def next_commands(*arguments: object) -> list[str]:
    done = nanovlm("new", *arguments)
    assert (done.status, done.err) == (0, "")
    listed = done.out.partition("\nnext\n")[2].partition("\n\n")[0]
    return [line.strip() for line in listed.splitlines()]


# what it prints


def test_it_says_what_was_written(tmp_path):
    done = nanovlm("new", "projector", "gated_mlp")
    files = ["gated_mlp.py", "test_gated_mlp.py", "gated_mlp.yaml"]
    assert done.out.partition("\n\n")[0].splitlines() == ["written", *(f"  {file}" for file in files)]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(files)


def test_next_for_files():
    assert next_commands("projector", "gated_mlp", "--into", "my ideas") == [
        "nanovlm check gated_mlp --plugin 'my ideas/gated_mlp.py'",
        "nanovlm train 'my ideas/gated_mlp.yaml' --plugin 'my ideas/gated_mlp.py'",
        "pytest 'my ideas/test_gated_mlp.py'",
    ]


def test_next_for_a_package():
    assert next_commands("projector", "gated_mlp", "--package") == [
        "pip install -e nanovlm-gated-mlp",
        "nanovlm check gated_mlp",
        "nanovlm train nanovlm-gated-mlp/experiments/gated_mlp.yaml",
    ]


def test_next_in_a_clone(clone):
    assert next_commands("projector", "gated_mlp") == [
        "nanovlm check gated_mlp",
        "nanovlm train experiments/gated_mlp.yaml",
        "pytest tests/plugins/test_gated_mlp.py tests/test_components.py tests/test_experiments.py -k gated_mlp",
    ]


def test_what_a_clone_makes_from_its_files_is_to_be_made_again(clone):
    """The commands are those that the pages themselves name."""
    told = nanovlm("new", "projector", "gated_mlp").out.partition("\nbefore a pull request, in the clone's folder")[2]
    commands = [line.strip() for line in told.splitlines()[1:]]
    pages = [(ROOT / page / "README.md").read_text() for page in ("plugins", "experiments")]
    assert len(commands) == 3
    assert all(any(f"`{command}`" in page for page in pages) for command in commands)


def test_next_in_a_clone_that_is_not_installed(tmp_path):
    make_clone(tmp_path / "other")
    commands = next_commands("tracker", "csv_log", "--into", "other")
    assert commands[:2] == ["pip install -e other", "nanovlm check csv_log"]


def test_next_where_another_kind_has_the_name():
    assert next_commands("dataset", "mlp")[0] == "nanovlm check mlp --kind dataset --plugin mlp.py"


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_commands_work_as_they_are_printed(kind):
    """`train` is only planned, since it takes a minute; the tests are run in test_written_files.py."""
    check, train, _ = next_commands(kind, "brand_new")
    done = nanovlm(*shlex.split(check)[1:])
    assert done.status == 0, done.out
    assert f"{kind} brand_new: " in done.out
    planned = nanovlm("plan", *shlex.split(train)[2:])
    assert (planned.status, planned.err) == (0, "")


@pytest.mark.parametrize("kind", KINDS)
def test_what_to_train_next_in_a_clone(kind, clone):
    _, train, _ = next_commands(kind, f"new_{kind}")  # a name for each: what was once imported stays
    planned = nanovlm("plan", *shlex.split(train)[2:])
    assert (planned.status, planned.err) == (0, "")


# what it refuses


def test_an_unknown_kind():
    assert "unknown kind 'projectors'. Did you mean 'projector'?" in refusal("projectors", "gated_mlp")
    assert "Known here: dataset, language_decoder, projector, tracker, vision_encoder" in refusal("model", "gated_mlp")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("gated-mlp", "gated_mlp"),
        ("GatedMLP", "gated_mlp"),
        ("MLPGate", "mlp_gate"),
        ("gated__mlp_", "gated_mlp"),
        ("2nd try", "nd_try"),
        ("größer", "groer"),
        ("./plugins/new.py", "plugins_new_py"),
        ("!?", "gated_mlp"),
    ],
)
def test_a_name_that_is_no_name(asked, meant):
    assert f"{asked!r} cannot be a component's name: it takes small letters" in refusal("projector", "--", asked)
    assert f"for example {meant!r}" in refusal("projector", "--", asked)
    assert snake_case(meant) == meant


@pytest.mark.parametrize("name", ["class", "lambda", "true", "none", "null"])
def test_a_word_of_python_or_yaml(name):
    assert f"{name!r} means something else in Python or YAML: choose another name" in refusal("projector", name)


def test_a_long_name():
    assert "has 31 characters: choose a name with at most 30" in refusal("projector", "a" * 31)


def test_a_name_that_is_taken():
    told = refusal("projector", "mlp")
    assert "there is a projector 'mlp' already, from nanovlm (" in told
    assert "mlp.py): choose another name, that of what yours does otherwise" in told


@pytest.mark.parametrize(("options", "place"), [
    (["--package"], "nanovlm-{dashed}/src/nanovlm_{name}/__init__.py"),
    ([], "{name}.py"),
])  # fmt: skip
def test_a_file_of_ones_own_can_move(options, place, clone, tmp_path, monkeypatch):
    """What was a file in plugins/, and is to become a package; and once it is moved away, it can."""
    name = "moves_away" if options else "moves_out"  # one for each: what was once imported stays
    scaffold("projector", name, clone)
    monkeypatch.chdir(tmp_path)
    file, place = clone / "plugins" / f"{name}.py", place.format(name=name, dashed=name.replace("_", "-"))
    told = refusal("projector", name, *options)
    assert f"choose another name, that of what yours does otherwise; if it is yours: move {file} away first" in told
    assert f"away first, then put its text into {place}\n" in told
    file.rename(tmp_path / "mine.txt")
    assert nanovlm("new", "projector", name, *options).status == 0
    assert (tmp_path / place).is_file()


def test_nor_does_what_is_in_its_place_already(clone):
    scaffold("projector", "stays_here", clone)
    assert "move" not in refusal("projector", "stays_here")


@pytest.mark.parametrize(
    ("version", "folder", "single"),
    [("", "plugins", True), ("", "site", True), ("1.0", "plugins", True), ("1.0", "site", False)],
)
def test_what_may_be_somebodys_own_file(version, folder, single, clone, monkeypatch):
    """A file in a clone counts as nanovlm's, and has its version; what an installed package has is never moved."""
    registry = Registry("projector")
    registry.entries.append(Entry("mine", object, Plugin("mine", "mine", version, str(clone / folder / "mine.py"), "")))
    with pytest.raises(ConfigError, match="there is a projector 'mine' already, from mine ") as caught:
        check_free("mine", registry, choose_layout("mine", clone, package=True))
    assert ("move " in str(caught.value)) is single


@pytest.mark.parametrize("name", ["random", "torch", "nanovlm"])
def test_a_file_that_would_hide_a_module(name):
    told = refusal("projector", name)
    assert f"{name!r} would be a module {name!r}, and there is one already" in told
    assert "choose another name" in told


def test_a_package_that_would_hide_another():
    assert "'plugins' would be a module 'nanovlm_plugins'" in refusal("projector", "plugins", "--package")


def test_a_clone_may_have_what_a_file_would_hide(clone):
    scaffold("projector", "random", clone)
    assert (clone / "plugins" / "random.py").is_file()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "gated_mlp.py").write_text("mine")
    (tmp_path / "gated_mlp.yaml").write_text("mine, too")
    told = refusal("projector", "gated_mlp")
    assert "nothing is overwritten, and there already is gated_mlp.py, gated_mlp.yaml: choose another name" in told
    assert "than 'gated_mlp', or remove what is not needed" in told
    assert (tmp_path / "gated_mlp.py").read_text() == "mine"
    assert not (tmp_path / "test_gated_mlp.py").exists()


def test_nor_is_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / "gated_mlp.yaml").symlink_to("gone.yaml")
    assert "there already is gated_mlp.yaml: choose another name" in refusal("projector", "gated_mlp")


def test_a_test_of_this_name_anywhere_in_a_clone(clone):
    (clone / "tests" / "lab").mkdir()
    (clone / "tests" / "lab" / "test_gated_mlp.py").write_text("")
    assert "there already is tests/lab/test_gated_mlp.py" in refusal("projector", "gated_mlp")


def test_a_folder_within_a_clone(clone, monkeypatch):
    monkeypatch.chdir(clone / "plugins")
    told = refusal("projector", "gated_mlp")
    assert ". lies in a clone of nanovlm, where a component has its places" in told
    assert f"--into {clone}, or use --package" in told
    (clone / "scratch").mkdir()
    assert scaffold("projector", "gated_mlp", clone / "scratch").files[0] == clone / "scratch" / "gated_mlp.py"


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "notes").write_text("")
    assert "notes: no files can be written there (" in refusal("projector", "gated_mlp", "--into", "notes")


def test_a_broken_pyproject_is_no_clone(tmp_path):
    make_clone(tmp_path / "clone")
    (tmp_path / "clone" / "pyproject.toml").write_text("[project")
    assert scaffold("projector", "gated_mlp", tmp_path / "clone").files[0] == tmp_path / "clone" / "gated_mlp.py"


# names of classes


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gated_mlp", "GatedMlp"), ("tensor", "TensorProjector"), ("timeout_error", "TimeoutErrorProjector")],
)
def test_a_class_hides_nothing(name, expected):
    assert class_name(name, "projector", "from torch import Tensor, nn") == expected


@pytest.mark.parametrize(
    ("kind", "name"),
    [("projector", "tensor"), ("vision_encoder", "block"), ("language_decoder", "segments"), ("dataset", "sample"),
     ("tracker", "tracker"), ("dataset", "benchmark")],
)  # fmt: skip
def test_names_that_the_file_itself_uses(kind, name, tmp_path):
    scaffold(kind, name, tmp_path)
    done = nanovlm("list", name, "--plugin", tmp_path / f"{name}.py")
    assert done.status == 0
    assert done.out.startswith(f"{kind} {name}")


def test_from_python(tmp_path):
    with pytest.raises(ConfigError, match="unknown kind"):
        scaffold("decoder", "mine", tmp_path)
    assert not list(tmp_path.iterdir())
