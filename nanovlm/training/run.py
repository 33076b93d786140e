"""The run folder: where everything of one run is, written to a temporary name and renamed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nanovlm.blueprint import ROLES, Recipe
from nanovlm.errors import ConfigError
from nanovlm.evaluation.evaluator import numbered
from nanovlm.files import locked, write_whole
from nanovlm.hardware import hardware
from nanovlm.model import VisionLanguageModel
from nanovlm.registry import Plugin
from nanovlm.yaml_reader import dump_yaml, read_yaml

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent  # of the checkout, if the code runs from one
PACKAGES = (
    "nanovlm", "torch", "transformers", "timm", "peft", "datasets", "tokenizers", "safetensors", "pillow", "pydantic",
)  # fmt: skip


NEVER_BEGAN = {".lock", "experiment.yaml"}  # what a run leaves that ended before it began


class Run:
    """One run's folder, with a name for each thing in it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.experiment = folder / "experiment.yaml"
        self.metrics = folder / "metrics.jsonl"
        self.model = folder / "model"
        self.best_model = folder / "model-best"
        self.summary = folder / "summary.json"
        self.provenance = folder / "provenance.json"
        self.checkpoints = folder / "checkpoints"

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """A run that is there; a ConfigError if it is none."""
        chosen = Path(folder).resolve()  # `latest` may point at another one soon
        if not (chosen / "experiment.yaml").is_file():
            raise ConfigError(f"--resume {folder}: it holds no experiment.yaml, so it is no run's folder")
        return cls(chosen, str(read_yaml(chosen / "experiment.yaml").get("name", "")))

    @classmethod
    def create(cls, recipe: Recipe, folder: str | Path | None = None) -> Run:
        """A new folder, by default ``runs/<name>/<time>-s<seed>/`` with ``runs/<name>/latest`` pointing at it."""
        name = recipe.experiment.name
        if folder is not None:
            chosen = Path(folder)
            if chosen.is_dir() and {file.name for file in chosen.iterdir()} not in (set(), NEVER_BEGAN):
                if cls(chosen, "").has_begun:
                    raise ConfigError(
                        f"--run-dir {chosen}: it holds a run; go on with that by --resume, or name a new one"
                    )
                raise ConfigError(f"--run-dir {chosen}: the folder is not empty; name a new one, or remove it")
            try:
                chosen.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"--run-dir {chosen}: no folder can be made there: {error.strerror}") from None
        else:
            parent = Path("runs", name)
            try:
                chosen = _new_folder(parent, f"{time.strftime('%Y%m%d-%H%M%S')}-s{recipe.experiment.seed}")
            except OSError as error:
                raise ConfigError(
                    f"{parent}: no run folder can be made there ({error.strerror}); move what is in its way, or use "
                    "--run-dir"
                ) from None
        run = cls(chosen, name)
        write_whole(run.experiment, dump_yaml(recipe.dump()))
        return run

    @property
    def has_begun(self) -> bool:
        return self.provenance.is_file()

    @property
    def resume_command(self) -> str:
        return shlex.join(["nanovlm", "train", "--resume", str(self.folder)])

    @property
    def plugin_files(self) -> list[str]:
        """The run's own copies of the plugins that were given by path."""
        return [str(file) for file in sorted(self.folder.glob("*.py"))]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within the block no other process trains in this folder; a ConfigError if one does already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        refusal = f"{self.folder}: another process trains in this folder; wait for it, or stop it"
        with locked(self.folder / ".lock", refusal):
            yield

    def rewind(self, step: int) -> None:
        """Forget what was logged after a step, the evaluations of this step included: it will be logged again."""
        if not self.metrics.is_file():
            return
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _is_before(line, step)]
        write_whole(self.metrics, "".join(f"{line}\n" for line in kept))

    def evaluation(self, benchmark: str, step: int, suffix: str = ".jsonl") -> Path:
        return self.folder / "evaluation" / benchmark / f"{step}{suffix}"

    def validation(self, step: int) -> Path:
        """The losses on held-out samples."""
        return self.folder / "validation" / f"{step}.jsonl"

    def bare_decoder(self, benchmark: str) -> Path:
        """What the language decoder said before it was trained, without pictures."""
        return self.folder / "evaluation" / benchmark / "bare-decoder.jsonl"

    def write_json(self, file: Path, content: dict[str, Any]) -> None:
        write_whole(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def record_provenance(self, recipe: Recipe, model: VisionLanguageModel, hashes: dict[str, str]) -> None:
        """What the run was made of: versions, code, plugins, ``hashes`` of its data, and its initial weights."""
        weights = {role: fingerprint(getattr(model, role)) for role in ROLES}
        self.write_json(self.provenance, _made_of(recipe, model.device) | hashes | {"initial_weights": weights})
        for file, copy in plugin_copies(self.folder, recipe.registries.files).items():
            write_whole(copy, file.read_text(encoding="utf-8"))

    def record_resumption(self, recipe: Recipe, device: torch.device, step: int) -> None:
        """What the run goes on with after a step: code, versions and hardware may not be what it began with."""
        content = json.loads(self.provenance.read_text(encoding="utf-8"))
        resumed = [*content.get("resumed", []), {"step": step} | _made_of(recipe, device)]
        self.write_json(self.provenance, content | {"resumed": resumed})


def _made_of(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Code, versions and hardware, as they are now."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "git": _git_state(),
        "source": source_hash(),
        "hardware": hardware(device),
        "plugins": _plugins_of(recipe),
    }


def _plugins_of(recipe: Recipe) -> list[dict[str, Any]]:
    """Each plugin that the run uses, and where in its experiment: ``{"module": ..., "used_for": ["projector"]}``."""
    places: dict[Plugin, list[str]] = {}
    for part in recipe.parts:
        places.setdefault(part.plugin, []).append(part.where)
    used = sorted(places, key=lambda plugin: (plugin.module, plugin.path))
    return [{**plugin.provenance(), "used_for": places[plugin]} for plugin in used]


def source_hash(package: Path = PACKAGE) -> str:
    """A hash of the core's own code: it tells states apart that git does not know, and works without git."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(package).as_posix()}:{len(content)}:".encode() + content)
    return digest.hexdigest()


def _is_before(line: str, step: int) -> bool:
    try:
        event = json.loads(line)
    except ValueError:  # the last line of a process that was killed
        return False
    logged = event.get("step", 0)
    return bool(logged <= step if event.get("event") == "step" else logged < step)


def plugin_copies(folder: Path, files: Sequence[str]) -> dict[Path, Path]:
    """Plugins that were given by path, and where a run keeps its copies of them."""
    paths = list(dict.fromkeys(Path(file).resolve() for file in files))
    names = numbered([path.stem for path in paths])  # two files may have one name
    return {path: folder / f"{name}.py" for path, name in zip(paths, names, strict=True)}


def fingerprint(module: nn.Module) -> str:
    """A hash of a module's weights, bit for bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def _new_folder(parent: Path, name: str) -> Path:
    """A folder of this name, or the first free of name-2, name-3, ...; ``latest`` beside it points at it."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            break
        except FileExistsError:
            number += 1
    link = parent / f".latest-{os.getpid()}"
    link.symlink_to(folder.name)
    try:
        link.replace(parent / "latest")
    except OSError:
        link.unlink()
        folder.rmdir()
        raise
    return folder


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # not every package is needed by every run
    return found


def _git_state(root: Path = ROOT) -> dict[str, Any]:
    """The commit of the code that runs, and whether it was changed or added to since; empty outside a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=all", "--", "nanovlm", "plugins")
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return {}
