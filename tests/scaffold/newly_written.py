"""What `nanovlm new` writes, and where: ``from newly_written import ...``."""

from pathlib import Path
from typing import NamedTuple

from nanovlm import Experiment, load_experiment
from nanovlm.plugins import Registries
from nanovlm.scaffold import Written

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "experiments" / "quickstart.yaml"
KINDS = [registry.kind for registry in Registries()]
FORMS = ("clone", "flat", "package")


class New(NamedTuple):
    """What `nanovlm new` wrote of one component."""

    kind: str
    form: str
    name: str
    folder: Path
    written: Written

    def file(self, ending: str) -> Path:
        """Its component, ``.py``, its experiment, ``.yaml``, or its test, ``test``."""
        tests = [file for file in self.written.files if file.name.startswith("test_")]
        others = [file for file in self.written.files if file not in tests and file.name != "ci.yml"]
        (found,) = tests if ending == "test" else [file for file in others if file.suffix == ending]
        return found

    def experiment(self, *overrides: str) -> Experiment:
        return load_experiment(self.file(".yaml"), overrides)


def make_clone(folder: Path) -> Path:
    """A folder that looks like a clone of nanovlm; its tests find its plugins as those of the real one do."""
    for name in ("plugins", "experiments", "tests/plugins"):
        (folder / name).mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "nanovlm"\n')
    (folder / "experiments" / "quickstart.yaml").write_text(QUICKSTART.read_text())
    (folder / "tests" / "conftest.py").write_text(
        "from pathlib import Path\n\nimport nanovlm_plugins\n\n"
        'nanovlm_plugins.__path__.append(str(Path(__file__).parents[1] / "plugins"))\n'
    )
    return folder


def name_of(kind: str, form: str) -> str:
    """Short, middling, or as long as may be: lines must fit, and be broken where ruff breaks them, for all."""
    return {"clone": f"{kind[0]}1", "flat": f"my_{kind}", "package": f"{kind}_{'x' * 30}"[:30]}[form]
