"""A distribution that `nanovlm new --package` wrote."""

import re
import tomllib
from importlib.metadata import version

import pytest
from newly_written import KINDS, ROOT

from nanovlm.experiment import parse_experiment
from nanovlm.merging import extend
from nanovlm.yaml_reader import parse_yaml, read_yaml


@pytest.fixture(params=KINDS)
def package(request, everything):
    return everything[request.param, "package"]


@pytest.fixture
def settings(package):
    return tomllib.loads((package.folder / "pyproject.toml").read_text())


def test_its_names(package, settings):
    project, name = settings["project"], package.name
    assert project["name"] == f"nanovlm-{name.replace('_', '-')}"
    assert project["entry-points"]["nanovlm"] == {name: f"nanovlm_{name}"}
    assert project["dependencies"] == [f"nanovlm>={version('nanovlm')}"]


def test_its_linters_ask_what_the_projects_ask(settings):
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())
    theirs, our_ruff = settings["tool"]["ruff"], ours["tool"]["ruff"]
    assert theirs["line-length"] == our_ruff["line-length"]
    assert theirs["lint"]["select"] == our_ruff["lint"]["select"]
    assert set(theirs["lint"]["ignore"]) <= set(our_ruff["lint"]["ignore"])
    (for_plugins,) = [part for part in ours["tool"]["mypy"]["overrides"] if part["module"] == ["plugins.*"]]
    asked = {key: value for key, value in ours["tool"]["mypy"].items() if key != "overrides"} | for_plugins
    del asked["module"]
    mypy = {key: value for key, value in settings["tool"]["mypy"].items() if key != "overrides"}
    assert mypy == asked | {"disallow_subclassing_any": False}


def test_its_workflow_checks_what_the_readme_says(package):
    workflow = read_yaml(package.folder / ".github" / "workflows" / "ci.yml")
    commands = [step["run"] for step in workflow["jobs"]["check"]["steps"] if "run" in step]
    readme = (package.folder / "README.md").read_text()
    (told,) = re.findall(r"## Check\n\n```bash\n(.*?)```", readme, re.DOTALL)
    assert set(told.splitlines()) <= set(commands)


def test_the_readmes_experiment_can_be_run(package):
    readme = (package.folder / "README.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    written = parse_yaml(text, "README.md")
    assert written.pop("extends") == "quickstart"
    experiment = parse_experiment(extend(read_yaml(ROOT / "experiments" / "quickstart.yaml"), written))
    places = {
        "dataset": [*experiment.data.train, *experiment.benchmarks],
        "tracker": experiment.trackers,
    }.get(package.kind) or [getattr(experiment, package.kind)]
    assert package.name in [choice.name for choice in places]


def test_the_readme_begins_with_what_whoever_installs_it_can_do(package):
    use = (package.folder / "README.md").read_text().partition("## Use")[2].partition("\n## ")[0]
    mine, here = use.index("extends: quickstart"), use.index(f"nanovlm train experiments/{package.name}.yaml")
    assert mine < use.index("In this folder") < here


def test_the_readme_says_how_editors_come_to_know_its_experiment(package):
    header = (ROOT / "experiments" / "quickstart.yaml").read_text().splitlines()[0]
    readme = (package.folder / "README.md").read_text()
    schema = header.partition("$schema=")[2]
    assert f"`nanovlm schema > experiments/{schema}`" in readme
    assert f"`{header}`" in readme
    assert not (package.folder / "experiments" / schema).exists()  # it is each user's own: made from what is installed


def test_the_readme_says_how_to_install_use_check_and_publish(package):
    readme = (package.folder / "README.md").read_text()
    assert re.findall(r"^## (.*)$", readme, re.MULTILINE) == ["Install", "Use", "Check", "Publish"]
    commands = [f"nanovlm {verb} {package.name}" for verb in ("list", "check")]
    assert all(piece in readme for piece in [*commands, "pip install -e", "LICENSE", "twine upload"])
