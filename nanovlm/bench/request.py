"""What is asked of ``nanovlm bench``, checked, and measured."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanovlm.bench.generation import measure_generation
from nanovlm.bench.loader import measure_loader
from nanovlm.bench.memory import measure_memory
from nanovlm.bench.results import Result, now
from nanovlm.bench.step import measure_step
from nanovlm.bench.upstream import compare
from nanovlm.blueprint import Recipe
from nanovlm.errors import ConfigError, unknown
from nanovlm.experiment import load_experiment
from nanovlm.hardware import hardware
from nanovlm.plugins import load_plugins
from nanovlm.training.precision import choose_device

PARTS = ("step", "loader", "generate")  # of --part
STEPS = {"step": 10, "loader": 10, "generate": 3, "against": 5}  # of each part, if --steps does not say otherwise


@dataclass(frozen=True)
class Request:
    """The command line's words. None, or an empty one, was not given.

    steps: how many steps, answers or passes are timed
    most: the most samples a step that --memory tries
    samples: how many samples ours and v0.1 are compared on
    """

    experiment: Path | None
    overrides: Sequence[str] = ()
    part: str = ""
    synthetic: bool = False
    memory: bool = False
    against: Path | None = None
    steps: int | None = None
    most: int | None = None
    samples: int | None = None
    plugins: Sequence[str] = ()

    @property
    def measured(self) -> str:
        """The part that is meant: one of PARTS, memory or against."""
        return "memory" if self.memory else "against" if self.against else self.part or PARTS[0]

    def check(self) -> None:
        """Raises ConfigError for words that mean nothing together."""
        if self.experiment is None:
            raise ConfigError("EXPERIMENT is missing: name a YAML file, for example experiments/quickstart.yaml")
        if self.part and self.part not in PARTS:
            raise ConfigError(f"--part {self.part}: {unknown('part', self.part, PARTS)}")
        given = {"--part": self.part, "--memory": self.memory, "--against": self.against}
        if len(chosen := [option for option, value in given.items() if value]) > 1:
            raise ConfigError(f"{' and '.join(chosen)}: each measures something else; give one of them at a time")
        for option, value, part in (("--most", self.most, "memory"), ("--samples", self.samples, "against")):
            if value is not None and self.measured != part:
                raise ConfigError(f"{option} {value}: means something with --{part} only; add it, or leave this out")
        if self.steps is not None and self.memory:
            raise ConfigError(f"--steps {self.steps}: --memory takes one step of each size; use --most to stop it")
        for option, value in (("--steps", self.steps), ("--most", self.most), ("--samples", self.samples)):
            if value is not None and value < 1:
                raise ConfigError(f"{option} {value}: must be at least 1")

    @property
    def command(self) -> str:
        """What measures the same again."""
        words = ["nanovlm", "bench", str(self.experiment), *self.overrides]
        words += ["--part", self.part] if self.part else []
        words += ["--synthetic"] * self.synthetic + ["--memory"] * self.memory
        words += ["--against", self.against.name] if self.against else []  # where a checkout lies is nobody's business
        for option, value in (("--steps", self.steps), ("--most", self.most), ("--samples", self.samples)):
            words += [option, str(value)] if value is not None else []
        return shlex.join([*words, *(word for file in self.plugins for word in ("--plugin", file))])


def run(request: Request) -> Result:
    """Raises NanoVLMError for whatever cannot be measured."""
    request.check()
    assert request.experiment
    recipe = Recipe.of(load_experiment(request.experiment, request.overrides), load_plugins(request.plugins))
    figures = measure(request, recipe)
    return Result(
        part=request.measured,
        experiment=recipe.experiment.name,
        command=request.command,
        synthetic=request.synthetic or request.measured not in ("step", "loader"),
        hardware=hardware(choose_device(recipe.experiment.device)),
        figures=figures,
        date=now(),
    )


def measure(request: Request, recipe: Recipe) -> dict[str, Any]:
    """The figures of what is meant. Answers, memory and comparison are of synthetic samples always."""
    part = request.measured
    if part == "memory":
        return measure_memory(recipe, request.most or 0)
    steps = STEPS[part] if request.steps is None else request.steps
    if request.against:
        samples = request.samples or recipe.experiment.training.samples_per_step
        return compare(recipe, request.against, samples, steps)
    if part == "generate":
        return measure_generation(recipe, steps)
    return (measure_step if part == "step" else measure_loader)(recipe, steps, request.synthetic)
