"""Two experiments, trained once for all tests through the command line."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from command import nanovlm
from tiny import QUICKSTART, SIZES

FAULTY = Path(__file__).parents[1] / "training" / "faulty_plugin.py"

# A dataset from a plugin file, three benchmarks of which two have one name, a question of several lines.
ODD = (
    "data.train=[{name: faulty, size: 16, broken: [1]}]",
    "data.seed=5",
    "seed=3",
    "benchmarks=[{name: mmstar, source: tiny}, {name: shapes, test_size: 4, image_size: 16}, "
    "{name: shapes, test_size: 5, image_size: 16, limit: 2}]",
)


class Trained:
    """A run folder, and what training printed."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.folder = folder
        self.status, self.printed, self.errors = nanovlm("train", QUICKSTART, *arguments, "--run-dir", folder)
        assert self.status == 0, self.errors

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def places(self) -> list[Path]:
        """What is listed under "where everything is"."""
        listed = self.printed.partition("where everything is\n")[2].partition("\n\n")[0]
        return [Path(line.strip()) for line in listed.splitlines()]

    @property
    def next_commands(self) -> list[list[str]]:
        """What is listed under "next", without the word nanovlm."""
        lines = re.split(r"^  nanovlm ", self.printed.partition("\nnext\n")[2], flags=re.MULTILINE)
        return [shlex.split(line) for line in lines[1:]]


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained") / "run", *SIZES, "trackers=[console]")


@pytest.fixture(scope="session")
def odd(tmp_path_factory) -> Trained:
    sizes = [size for size in SIZES if not size.startswith(("data.train.0.", "benchmarks."))]
    return Trained(tmp_path_factory.mktemp("odd") / "a run", *sizes, *ODD, "--plugin", FAULTY)


@pytest.fixture
def rival() -> Path:
    return Path(__file__).with_name("rival_plugin.py")
