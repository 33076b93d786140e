"""``nanovlm evaluate``: score a run, a model folder or a hub id on a benchmark."""

import json
from pathlib import Path
from typing import Annotated

import typer

from nanovlm.blueprint import Part, open_benchmark
from nanovlm.cli.options import AsJson, Device, Overrides, PluginFiles
from nanovlm.evaluation.evaluator import Questions
from nanovlm.experiment import Named, load_experiment, override
from nanovlm.model import VisionLanguageModel
from nanovlm.plugins import Registries, load_plugins
from nanovlm.training.precision import choose_device


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run folder, a model folder, or a hub id.")],
    options: Overrides = None,
    benchmark: Annotated[
        str, typer.Option(help="The benchmark's name; its options as in the model's run, or as KEY=VALUE.")
    ] = "",
    limit: Annotated[int, typer.Option(help="Ask only the first so many questions; 0 asks all.")] = 0,
    controls: Annotated[bool, typer.Option(help="Also ask with shuffled pictures and with none.")] = True,
    output: Annotated[Path | None, typer.Option(help="Write one JSON line an item to this file.")] = None,
    device: Device = "auto",
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Score a model on a benchmark."""
    registries = load_plugins(plugin or ())
    folder = model_folder(model)
    part = choose_benchmark(registries, folder, benchmark, options or [])
    questions = Questions(part.name, open_benchmark(part), limit)
    loaded = VisionLanguageModel.from_pretrained(folder, registries, str(choose_device(device)))
    evaluation = questions.evaluate(loaded, controls)
    if output:
        evaluation.write(output)
    summary = evaluation.summary()
    if as_json:
        print(json.dumps({"benchmark": part.name, **summary}, indent=2))
        return
    low, high = summary["ci95"]
    print(
        f"{part.name}: accuracy {summary['accuracy']:.1%} [{low:.1%}, {high:.1%}] on {summary['questions']} questions"
    )
    for name, value in {**summary["categories"], **summary["controls"]}.items():
        print(f"  {name}: {value:.1%}")
    for reason, count in summary["skipped"].items():
        print(f"  {count} questions skipped, and counted as wrong: {reason}")


def model_folder(model: str) -> str:
    """A run stands for its last model."""
    return str(Path(model, "model")) if Path(model, "model", "config.json").is_file() else model


def choose_benchmark(registries: Registries, folder: str, name: str, options: list[str]) -> Part:
    """The benchmark, with its options from the run that the model belongs to, and ``options`` (KEY=VALUE) over them."""
    from nanovlm.errors import ConfigError
    from nanovlm.experiment import split_override

    run = Path(folder).resolve().parent / "experiment.yaml"
    recorded = [choice for choice in load_experiment(run).benchmarks] if run.is_file() else []
    chosen = next((choice for choice in recorded if name in ("", choice.name)), Named(name=name) if name else None)
    if chosen is None:
        raise ConfigError(f"--benchmark: {folder} belongs to no run that names one; name it: --benchmark NAME")
    tree = {"name": chosen.name, **chosen.options}
    for keys, value in map(split_override, options):
        tree = override(tree, keys, value)
    tree.pop("name")
    return Part.of(registries.datasets, "benchmark", chosen.name, tree).resolved()
