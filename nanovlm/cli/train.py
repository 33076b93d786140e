"""``nanovlm train``: from an experiment file to a run folder."""

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from nanovlm.cli.evaluate import described
from nanovlm.cli.options import ExperimentFile, Overrides, PluginFiles
from nanovlm.data.tally import describe
from nanovlm.experiment import load_experiment
from nanovlm.training.clock import per_second
from nanovlm.training.launch import train
from nanovlm.training.run import plugin_copies

MUCH_WAITING = 0.1  # of the training time: the device could do more


def command(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="The run's folder; by default runs/<name>/<time>-s<seed>.")
    ] = None,
    plugin: PluginFiles = None,
) -> None:
    """Train an experiment and evaluate it."""
    summary = train(load_experiment(experiment, overrides or ()), run_dir, plugin or ())
    print("\n".join(report(summary)))
    print("\nnext")
    for line in next_commands(summary, plugin or ()):
        print(f"  {shlex.join(line)}")


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
        lines.append(f"skipped samples: {describe(Counter(summary['skipped']))}")
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
        lines = picture.with_name(f"{step}.jsonl").read_text(encoding="utf-8").splitlines()
        return picture, json.loads(lines[int(item)])["question"]
    return None
