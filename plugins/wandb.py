"""Weights & Biases: a run's metrics and answers, with their pictures. Off unless named; offline unless told otherwise.

Nothing leaves this machine before an experiment says ``mode: online``, and never the code, its git state or what the
terminal shows. Everything that the library writes goes into the run's folder. A failure of the library or the network
never stops a run: the first one is said, the others are counted, and ``metrics.jsonl`` has everything all the same.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from nanovlm import ComponentConfig, Tracker, hookimpl
from nanovlm.data.images import open_image
from nanovlm.errors import named
from nanovlm.evaluation.evaluator import Answered
from nanovlm.training.run import Run
from nanovlm.yaml_reader import read_yaml

# Seconds, where the library would wait for as long as it takes. Not every version has every limit.
PATIENCE: dict[str, Any] = {"init_timeout": 60.0, "login_timeout": 30.0, "finish_timeout": 300.0}
Mode = Literal["offline", "online"]
PICTURE_SIZE = 512  # pixels along the longer side, at most


class Wandb(Tracker):
    class Config(ComponentConfig):
        mode: Mode = "offline"
        """`offline` writes into the run's folder only (`wandb sync` uploads it later); `online` uploads as it goes."""
        project: str = "nanovlm"
        """The W&B project."""
        entity: str = ""
        """The W&B user or team; by default the account's own."""
        run_name: str = ""
        """What the run is called there; by default `<name>-s<seed>`."""
        tags: list[str] = []
        """Words to find the run by."""
        pictures: Annotated[int, Field(ge=0)] = 16
        """Of each evaluation, the answers to so many questions are shown with their (first) pictures."""

    config: Config

    def __init__(self, config: Config, run: Run) -> None:
        super().__init__(config, run)
        self.folder = run.folder.resolve()
        self.remote: Any = None  # the run as W&B has it
        self.lost = 0

    def started(self, facts: dict[str, Any]) -> None:
        """Without login or network an online run becomes an offline one, and without the library none."""
        modes: tuple[Mode, ...] = (self.config.mode, "offline")
        for mode in dict.fromkeys(modes):
            try:
                with kept_in(self.folder / "wandb"):
                    self.remote = self.open(mode, facts)
            except Exception as error:  # whatever the library raises
                say(f"no {mode} run: {named(error)}")
            else:
                offline = f"writes to {self.folder / 'wandb'}, and uploads nothing; `wandb sync` does"
                return say(offline if mode == "offline" else self.remote.url)
        say("the run goes on without it")

    def open(self, mode: Mode, facts: dict[str, Any]) -> Any:
        """W&B's run. Raises whatever the library does."""
        import wandb

        experiment = read_yaml(self.run.experiment)
        limits = {key: value for key, value in PATIENCE.items() if key in wandb.Settings.model_fields}
        return wandb.init(
            mode=mode,
            dir=str(self.folder),
            project=self.config.project,
            entity=self.config.entity or None,
            name=self.config.run_name or f"{self.run.name}-s{experiment.get('seed', 0)}",
            tags=self.config.tags,
            config=experiment | {"facts": {key: value for key, value in facts.items() if key != "run"}},
            reinit="create_new",  # whatever else this process tracks is left alone
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True, **limits),
        )

    def step_finished(self, metrics: dict[str, float]) -> None:
        self.log({key: value for key, value in metrics.items() if key != "step"}, int(metrics["step"]))

    def evaluated(self, results: dict[str, Any], answered: Sequence[Answered] = ()) -> None:
        """A benchmark's figures go by its name: ``shapes/accuracy``, ``shapes/controls/no_image``."""
        name = results.get("benchmark", "")
        figures = {key: value for key, value in results.items() if key not in ("step", "questions_by_category")}
        self.log(numbers(figures, f"{name}/" if name else ""), results["step"])
        shown = [(sample, item) for sample, item in answered if sample.images][: self.config.pictures]
        if shown and self.remote:
            with self.guarded(), kept_in(self.folder / "wandb"):
                self.remote.log({f"{name}/answers": table(shown)}, step=results["step"])

    def finished(self, summary: dict[str, Any]) -> None:
        if self.remote:
            with self.guarded():
                self.remote.summary.update(numbers(summary))
        self.close(exit_code=0)

    def failed(self, error: BaseException) -> None:
        self.close(exit_code=1)

    def log(self, figures: dict[str, Any], step: int) -> None:
        if self.remote:
            with self.guarded():
                self.remote.log(figures, step=step)

    def close(self, exit_code: int) -> None:
        """W&B shows a run as finished after 0, and as failed after anything else."""
        if self.remote:
            with self.guarded():
                self.remote.finish(exit_code=exit_code)
            self.remote = None
        if self.lost:
            say(f"{self.lost} calls were lost; {self.run.metrics} has everything")

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What fails within the block is counted, and said if it is the first; the run goes on."""
        try:
            yield
        except Exception as error:
            self.lost += 1
            if self.lost == 1:
                say(f"a call failed ({named(error)}); the run goes on, and the next ones are only counted")


def numbers(facts: Mapping[str, Any], above: str = "") -> dict[str, float]:
    """The numbers in nested results, by their path."""
    found: dict[str, float] = {}
    for key, value in facts.items():
        if isinstance(value, list):
            value = dict(zip(map(str, range(len(value))), value, strict=True))
        if isinstance(value, Mapping):
            found |= numbers(value, f"{above}{key}/")
        elif isinstance(value, int | float):
            found[f"{above}{key}"] = value
    return found


def table(answered: Sequence[Answered]) -> Any:
    """W&B's table of questions with their first pictures."""
    import wandb

    shown = wandb.Table(columns=["id", "picture", "pictures", "question", "prediction", "answer", "score", "category"])
    for sample, item in answered:
        picture = open_image(sample.images[0])
        picture.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
        words = item.question, item.prediction, item.answer
        shown.add_data(item.id, wandb.Image(picture), len(sample.images), *words, item.score, item.category)
    return shown


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Within the block the library keeps its logs, and what a table refers to, here and not in the user's home."""
    places = {name: os.environ.get(name) for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    os.environ |= dict.fromkeys(places, str(folder))
    try:
        yield
    finally:
        for name, before in places.items():
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def say(words: str) -> None:
    print(f"wandb: {words}", file=sys.stderr, flush=True)


@hookimpl
def register_trackers(register):
    register("wandb", Wandb)
