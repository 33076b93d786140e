"""``nanovlm train``: from an experiment file to a run folder."""

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from nanovlm.cli.evaluate import described
from nanovlm.cli.options import EXPERIMENT, Overrides, PluginFiles
from nanovlm.data.tally import describe
from nanovlm.errors import ConfigError
from nanovlm.experiment import load_experiment
from nanovlm.training.clock import per_second
from nanovlm.training.launch import train
from nanovlm.training.resume import resume
from nanovlm.training.run import Run, plugin_copies
from nanovlm.training.torchrun import is_first, started_again

MUCH_WAITING = 0.1  # of the training time: the device could do more


def command(
    experiment: Annotated[Path | None, EXPERIMENT] = None,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="The run's folder; by default runs/<name>/<time>-s<seed>.")
    ] = None,
    resumed: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with this run; takes the place of EXPERIMENT.")
    ] = None,
    plugin: PluginFiles = None,
) -> None:
    """Train an experiment and evaluate it."""
    changes = list(overrides or ())
    if experiment and resumed and "=" in experiment.name:  # there is no experiment to be named first
        experiment, changes = None, [str(experiment), *changes]
    summary = start(experiment, changes, run_dir, resumed, plugin or ())
    if not is_first():
        return
    print("\n".join(report(summary)))
    print("\nnext")
    for line in next_commands(summary, plugin or ()):
        print(f"  {shlex.join(line)}")


def start(
    experiment: Path | None, changes: list[str], run_dir: Path | None, resumed: Path | None, plugins: Sequence[str]
) -> dict[str, Any]:
    if resumed and run_dir:
        raise ConfigError("--resume goes on in the run's own folder: leave --run-dir out")
    if resumed:
        given = load_experiment(experiment, changes) if experiment else None
        return resume(resumed, changes, plugins, given)
    if not experiment:
        raise ConfigError("EXPERIMENT is missing: name a YAML file, or a run to go on with by --resume")
    if started_again():
        if not run_dir:
            raise ConfigError("torchrun started the run again: with --run-dir it would go on where it was")
        if Run(run_dir, "").has_begun:  # else it had not begun yet
            return resume(run_dir, (), plugins, load_experiment(experiment, changes))
    return train(load_experiment(experiment, changes), run_dir, plugins)


def report(summary: dict[str, Any]) -> list[str]:
    """What the run came to, and where everything is."""
    run = summary["run"]
    lines = [
        f"\n{summary['samples']:,} samples in {summary['steps']:,} steps, "
        f"{per_second(summary['samples_per_second'])} samples/s, "
        f"{per_second(summary['tokens_per_second'])} tokens/s, {summary['wall_seconds']:,.0f} s in all, "
        f"peak memory {summary['peak_memory_bytes'] / 2**30:.1f} GiB"
    ]
    if summary["data_wait"] >= MUCH_WAITING:
        lines.append(
            f"waiting for data {summary['data_wait']:.0%} of the time: "
            "raise data.workers, or make the pictures smaller before training"
        )
    if lost := summary.get("lost_updates"):
        lines.append(f"updates lost, because the loss or its gradient was no finite number: {lost}")
    if summary["skipped"]:
        lines.append(f"skipped samples: {describe(Counter(summary['skipped']), summary['first_skipped'])}")
    if by_dataset := summary.get("validation_loss_by_dataset"):
        lines.append("validation loss: " + ", ".join(f"{name} {loss:.3f}" for name, loss in by_dataset.items()))
    if skipped := summary.get("validation_skipped"):
        used = "" if "validation_loss" in summary else ", so that no sample was left"
        lines.append(f"skipped in validation: {describe(Counter(skipped))}{used}")
    for name, result in summary["benchmarks"].items():
        lines += described(name, result)
    places = [Path(run, name) for name in ("summary.json", "metrics.jsonl", "model", "model-best")]
    places += sorted(Path(run).glob("evaluation/*/*"))
    return [*lines, "\nwhere everything is", *(f"  {place}" for place in places if place.exists())]


def next_commands(summary: dict[str, Any], plugins: Sequence[str]) -> list[list[str]]:
    """What to try on this run: ask its model, score it again, train it from another seed."""
    run = summary["run"]
    options = [word for copy in plugin_copies(Path(run), plugins).values() for word in ("--plugin", str(copy))]
    commands = []
    if asked := example_question(Path(run)):
        picture, question = asked
        commands.append(["nanovlm", "generate", "--model", run, "--image", str(picture), "--prompt", question])
    commands += [["nanovlm", "evaluate", run, "--benchmark", name] for name in summary["benchmarks"]]
    commands.append(["nanovlm", "train", str(Path(run, "experiment.yaml")), f"seed={summary['seed'] + 1}"])
    return [[*command, *options] for command in commands]


def example_question(run: Path) -> tuple[Path, str] | None:
    """A picture that a benchmark left in the run's folder, and what was asked about it."""
    for picture in sorted(run.glob("evaluation/*/*-item*.png")):
        step, _, item = picture.stem.partition("-item")
        lines = picture.with_name(f"{step}.jsonl").read_text(encoding="utf-8").split("\n")
        return picture, json.loads(lines[int(item)])["question"]
    return None
