"""Without a checkout: nanovlm from a wheel, and beside it a plugin of a stranger that comes and goes.

Wheels are built and installed by pip as a user would, into a fresh environment; nothing here runs from the checkout.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEFT_BEHIND = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "wandb", "results")
TINY = (
    *("data.train.0.train_size=64", "data.train.0.image_size=64", "data.workers=0", "benchmarks.0.test_size=8"),
    *("training.samples_per_step=8", "training.tokens_per_row=2048", "device=cpu"),
)

pytestmark = pytest.mark.packages


def run(*command: object, folder: Path, status: int = 0) -> str:
    """What a command prints; unlike ``status``, its exit status fails the test with all that it said."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in hidden} | {"COLUMNS": "240"}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800
    )
    assert done.returncode == status, f"$ {' '.join(words)}\nexit status {done.returncode}, not {status}\n{done.stdout}"
    return done.stdout


def build(source: Path, into: Path) -> Path:
    run(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--wheel-dir", into, folder=source)
    (wheel,) = into.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("outside")


@pytest.fixture(scope="module")
def wheel(work) -> Path:
    """nanovlm's, built from a copy: what a build leaves in the checkout must not be packed by the next one."""
    shutil.copytree(ROOT, work / "checkout", ignore=LEFT_BEHIND)
    return build(work / "checkout", work / "wheel")


@pytest.fixture(scope="module")
def bin_folder(work, wheel) -> Path:
    """That of a fresh environment, with nanovlm and what it depends on."""
    run(sys.executable, "-m", "venv", work / "environment", folder=work)
    folder = work / "environment" / ("Scripts" if os.name == "nt" else "bin")
    run(folder / "python", "-m", "pip", "install", wheel, folder=work)
    shutil.rmtree(work / "checkout")  # so that nothing can be found there
    return folder


@pytest.fixture
def nanovlm(bin_folder, tmp_path):
    """``nanovlm ARGUMENTS`` in that environment, and in an empty folder of its own."""
    return lambda *arguments, status=0: run(bin_folder / "nanovlm", *arguments, folder=tmp_path, status=status)


def files(folder: Path, *endings: str) -> set[str]:
    found = (file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return {file.relative_to(folder).as_posix() for file in found if not endings or file.suffix in endings}


def test_the_wheel_has_the_core_the_plugins_and_the_experiments_and_nothing_else(wheel):
    expected = {f"nanovlm/{name}" for name in files(ROOT / "nanovlm")}
    expected |= {f"nanovlm_plugins/{name}" for name in files(ROOT / "plugins", ".py")}
    expected |= {f"nanovlm_experiments/{name}" for name in files(ROOT / "experiments", ".yaml")}
    expected.add("nanovlm_experiments/experiment.schema.json")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert sorted(expected - packed) == []
    assert sorted(packed - expected) == []


def test_the_shipped_experiments_run_by_name(nanovlm, tmp_path):
    nanovlm("train", "quickstart", *TINY, "training.steps=2", "--run-dir", "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2
    assert "222,081,600" in nanovlm("plan", "baseline")
    assert "3 variants" in nanovlm("ablate", "pixel_shuffle", "--plan")
    (tmp_path / "own.yaml").write_text("extends: quickstart\nprojector: {factor: 4}\n")
    explained = nanovlm("plan", "own.yaml", "--explain")
    assert "environment" in next(line for line in explained.splitlines() if line.startswith("quickstart.yaml is "))


def test_a_strangers_package_comes_is_used_and_goes(nanovlm, bin_folder, tmp_path):
    pip = (bin_folder / "python", "-m", "pip")
    nanovlm("new", "projector", "gated_mlp", "--package")
    package = build(tmp_path / "nanovlm-gated-mlp", tmp_path / "dist")
    shutil.rmtree(tmp_path / "nanovlm-gated-mlp")
    assert "unknown component 'gated_mlp'" in nanovlm("list", "gated_mlp", status=2)

    run(*pip, "install", package, folder=tmp_path)
    try:
        assert "nanovlm-gated-mlp 0.1.0" in nanovlm("list")
        assert "projector gated_mlp" in nanovlm("list", "gated_mlp")
        assert "projector gated_mlp" in nanovlm("check", "gated_mlp")
        nanovlm("train", "quickstart", "projector=gated_mlp", *TINY, "training.steps=3", "--run-dir", "run")
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 3
        assert nanovlm("generate", "--model", "run", "--prompt", "What is red?")
    finally:
        run(*pip, "uninstall", "--yes", "nanovlm-gated-mlp", folder=tmp_path)

    assert "gated_mlp" not in nanovlm("list")
    for command in (("generate", "--model", "run", "--prompt", "What is red?"), ("evaluate", "run")):
        message = nanovlm(*command, status=2)
        assert "gated_mlp" in message
        assert "nanovlm-gated-mlp" in message
        assert "Traceback" not in message
