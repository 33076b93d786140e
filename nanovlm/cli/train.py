"""``nanovlm train``: from an experiment file to a run folder."""

from pathlib import Path
from typing import Annotated

import typer

from nanovlm.cli.options import ExperimentFile, Overrides, PluginFiles
from nanovlm.experiment import load_experiment
from nanovlm.training.launch import train


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
    print(report(summary, first_image(Path(summary["run"]))))


def first_image(run: Path) -> str:
    """A picture to try the model on: the run's own, if it drew one."""
    return str(next(iter(sorted(run.glob("evaluation/*/*.png"))), "PICTURE.png"))


def report(summary: dict, image: str) -> str:  # type: ignore[type-arg]
    """What the run came to, where everything is, and what to try next."""
    run = summary["run"]
    lines = [
        f"\n{summary['samples']:,} samples in {summary['steps']:,} steps, "
        f"{summary['samples_per_second']:,.0f} samples/s, "
        f"{summary['tokens_per_second']:,.0f} tokens/s, {summary['wall_seconds']:,.0f} s in all, "
        f"peak memory {summary['peak_memory_bytes'] / 2**30:.1f} GiB"
    ]
    if summary["skipped"]:
        lines.append(
            "skipped samples: " + ", ".join(f"{count} {reason}" for reason, count in summary["skipped"].items())
        )
    for name, result in summary["benchmarks"].items():
        low, high = result["ci95"]
        lines.append(
            f"{name}: accuracy {result['accuracy']:.1%} [{low:.1%}, {high:.1%}] on {result['questions']} questions"
        )
        for control, value in result["controls"].items():
            lines.append(f"  the same questions, {CONTROLS.get(control, control)}: {value:.1%}")
    lines += ["\nwhere everything is", f"  {run}/summary.json", f"  {run}/metrics.jsonl", f"  {run}/model/"]
    lines += [f"  {path}" for path in sorted(map(str, Path(run).glob("evaluation/*/*")))]
    lines += [
        "\nnext",
        f'  nanovlm generate --model {run}/model --image {image} --prompt "How many shapes?"',
        *(f"  nanovlm evaluate {run}/model --benchmark {name}" for name in summary["benchmarks"]),
        f"  nanovlm train {run}/experiment.yaml projector.factor=4",
    ]
    return "\n".join(lines)


CONTROLS = {"shuffled": "pictures shuffled between them", "no_image": "without pictures"}
