"""Small sweeps for tests: ``from sweeping import ...``."""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tiny import QUICKSTART, SIZES

from nanovlm.lab.ablation import Ablation, load_ablation
from nanovlm.lab.sweep.jobs import Processes

STAND_IN = Path(__file__).with_name("stand_in.py")


def ablation_file(folder: Path, factors: str = "[1, 2]", seeds: str = "[0]") -> Path:
    """A question about pixel shuffle; its baseline is factor 2."""
    file = folder / "question.yaml"
    file.write_text(
        f"extends: {QUICKSTART}\n"
        f"ablate: {{axes: {{projector.factor: {factors}}}, baseline: {{projector.factor: 2}}, seeds: {seeds}}}\n"
    )
    return file


def tiny_ablation(folder: Path, *overrides: str, factors: str = "[1, 2]", seeds: str = "[0]") -> Ablation:
    sizes = [size for size in SIZES if size.partition("=")[0] not in {text.partition("=")[0] for text in overrides}]
    return load_ablation(ablation_file(folder, factors, seeds), [*sizes, *overrides])


def program(**behaviours: str) -> list[str]:
    """The stand-in; ``factor_1="fail"`` is what it does to the variant ``factor=1``."""
    named = {variant.replace("_", "="): what for variant, what in behaviours.items()}
    return [sys.executable, "-S", "-E", str(STAND_IN), json.dumps(named)]


def processes(slots: int = 1, **behaviours: str) -> Processes:
    return Processes([{}] * slots, program(**behaviours))


def starts(run: Path) -> list[dict[str, Any]]:
    """How the stand-in was started for this run."""
    file = run.with_name(f"{run.name}.starts")
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return [line for line in lines if "words" in line]


def signals(run: Path) -> list[str]:
    file = run.with_name(f"{run.name}.signals")
    return file.read_text().split() if file.is_file() else []


class Teller:
    """Sends this process signals, as a user or a scheduler does, once all of some files are there."""

    def __init__(self, numbers: list[int], files: list[Path], pause: float = 0.2) -> None:
        self.numbers, self.files, self.pause = numbers, files, pause
        self.thread = threading.Thread(target=self.tell, daemon=True)

    def tell(self) -> None:
        deadline = time.monotonic() + 60
        while not all(file.is_file() for file in self.files) and time.monotonic() < deadline:
            time.sleep(0.01)
        for number in self.numbers:
            os.kill(os.getpid(), number)
            time.sleep(self.pause)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *error: object) -> None:
        self.thread.join()


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Of every file: which one it is on the disk, and when it was written."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}
