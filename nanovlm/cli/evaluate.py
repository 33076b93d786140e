"""``nanovlm evaluate``: score a run, a model folder or a hub id on a benchmark."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nanovlm.blueprint import Part, open_benchmark
from nanovlm.cli.options import AsJson, Device, DeviceChoice, PluginFiles, TokenizerChoice
from nanovlm.components import parse
from nanovlm.errors import ConfigError, DataError, join
from nanovlm.evaluation.evaluator import Item, Questions, numbered, read_items
from nanovlm.evaluation.overlap import trained_on_in_words
from nanovlm.experiment import Experiment, NamedBenchmark
from nanovlm.interop.opening import check_benchmark, find_model, load_model, recorded_experiment
from nanovlm.merging import override, split_override
from nanovlm.plugins import load_plugins
from nanovlm.training.precision import Precision, choose_device
from nanovlm.training.run import Run


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run folder, a model folder, or a hub id.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="The benchmark's options, over those of the model's run."),
    ] = None,
    benchmark: Annotated[
        str, typer.Option(metavar="NAME", help="By default the first one of the model's run.", show_default=False)
    ] = "",
    limit: Annotated[
        int | None,
        typer.Option(min=0, help="Ask only the first so many questions; 0 asks all. By default as in the model's run."),
    ] = None,
    controls: Annotated[bool, typer.Option(help="Also ask with shuffled pictures and with none.")] = True,
    output: Annotated[Path | None, typer.Option(dir_okay=False, help="Write one JSON line an item here.")] = None,
    lmms_eval: Annotated[
        str, typer.Option(metavar="TASK,...", help="Ask tasks of lmms-eval instead; a run's folder keeps the results.")
    ] = "",
    include_path: Annotated[
        str, typer.Option(metavar="FOLDER", help="With --lmms-eval: a folder with more tasks.", show_default=False)
    ] = "",
    tokenizer: TokenizerChoice = "",
    device: DeviceChoice = Device.AUTO,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Score a model on a benchmark."""
    if lmms_eval:
        if benchmark or options or output:
            raise ConfigError("--lmms-eval brings its own benchmarks: leave out --benchmark, KEY=VALUE and --output")
        model_args = {"device": device.value, "tokenizer": tokenizer, "plugin": os.pathsep.join(plugin or ())}
        ask_lmms_eval({"pretrained": model, **model_args}, lmms_eval.split(","), limit or 0, include_path, as_json)
        return
    if include_path:
        raise ConfigError("--include-path names a folder with tasks for --lmms-eval, which is missing")
    if output:
        make_room_for(output)
    registries = load_plugins(plugin or ())
    source, chosen_device = find_model(model), choose_device(device.value)
    run = recorded_experiment(source)
    name, choice = choose_benchmark(run, benchmark, options or [])
    check_benchmark(source, choice, registries)
    part = Part.of(registries.datasets, "benchmark", choice.name, choice.options).resolved()
    questions = Questions(name, open_benchmark(part), choice.limit if limit is None else limit)
    loaded = load_model(source, registries, str(chosen_device), tokenizer)
    bare = recorded_answers(source, name) if controls else []
    with Precision(run.training.precision if run else "auto", chosen_device).autocast():
        evaluation = questions.evaluate(loaded, controls, run.data.seed if run else 0, bare)
    if controls and questions.benchmark.bare_decoder and "bare_decoder" not in evaluation.controls:
        print(f"{name}: {UNTOLD}", file=sys.stderr)
    if output:
        evaluation.write(output)
    summary = evaluation.summary()
    print(json.dumps({"benchmark": name, **summary}, indent=2) if as_json else "\n".join(described(name, summary)))


def ask_lmms_eval(model_args: dict[str, str], tasks: list[str], limit: int, include_path: str, as_json: bool) -> None:
    """Print what lmms-eval makes of a model, with its own figures; and say where the items are kept, if they are."""
    from nanovlm.interop.lmms_eval_run import ask, in_words, keep

    source = find_model(model_args["pretrained"])
    summaries, lines = [], []
    evaluations, problems = ask(model_args, tasks, limit, include_path)
    for evaluation in evaluations:
        file, summary = keep(evaluation, source), evaluation.summary()
        summaries.append({"benchmark": evaluation.benchmark, **summary})
        lines += described(evaluation.benchmark, summary)
        lines += [f"  lmms-eval: {figure}" for figure in in_words(summary["lmms_eval"]["figures"])]
        lines.append(f"  {file}" if file else "  kept nowhere: this is no finished run's last model")
    print(json.dumps(summaries, indent=2) if as_json else "\n".join(lines))
    if problems:
        raise DataError(join(problems))


def make_room_for(output: Path) -> None:
    """The folder of a file that is written at the end: a mistake in it must not cost a whole evaluation."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output}: no folder can be made there: {error.strerror}") from None


def recorded_answers(source: str, benchmark: str) -> list[Item]:
    """What the language decoder said before the model's run trained it, as the run recorded it."""
    return read_items(Run(Path(source).resolve().parent, "").bare_decoder(benchmark))


def choose_benchmark(run: Experiment | None, name: str, options: list[str]) -> tuple[str, NamedBenchmark]:
    """The benchmark called ``name`` (or the first) in the model's run, or a new one, with ``options`` over its own."""
    recorded = run.benchmarks if run else []
    names = numbered([choice.name for choice in recorded])
    found = dict(zip(names, recorded, strict=True))
    name = name or next(iter(names), "")
    if not name:
        raise ConfigError("--benchmark NAME is missing: the model belongs to no run that has a benchmark of its own")
    tree: Any = found.get(name, NamedBenchmark(name=name)).model_dump()
    for keys, value in map(split_override, options):
        if keys[-1] == "name":
            raise ConfigError(f"{'.'.join(keys)}={value}: another benchmark is chosen by --benchmark {value}")
        if keys[0] == "benchmarks":
            raise ConfigError(f"{'.'.join(keys)}: there is one benchmark here, so write {keys[-1]}={value}")
        tree = override(tree, keys[1:] if keys[0] == "benchmark" and len(keys) > 1 else keys, value)
    return name, parse(NamedBenchmark, tree, "benchmark")


def described(name: str, summary: dict[str, Any]) -> list[str]:
    """A benchmark's result in words, and as a table by category."""
    lines = [f"{name}: accuracy {percent(summary, 'accuracy')} on {summary['questions']:,} questions"]
    if count := summary.get("trained_on"):
        lines.append(f"  {trained_on_in_words(count, summary['questions'])}")
    lines += [f"  the same questions, {CONTROLS[key]}: {value:.1%}" for key, value in summary["controls"].items()]
    measures = [key for key, value in summary.items() if isinstance(value, float) and key != "accuracy"]
    lines += [f"  {key.replace('_', ' ')}: {percent(summary, key)}" for key in measures]
    lines += [f"  {count} skipped, and counted as wrong: {reason}" for reason, count in summary["skipped"].items()]
    return lines + category_table(summary)


def percent(summary: dict[str, Any], key: str) -> str:
    """A figure, with its 95 % interval if it has one (``accuracy`` has ``ci95``)."""
    interval = summary.get(key.removesuffix("accuracy") + "ci95") if key.endswith("accuracy") else None
    return f"{summary[key]:.1%}" + (f" [{interval[0]:.1%}, {interval[1]:.1%}]" if interval else "")


def category_table(summary: dict[str, Any]) -> list[str]:
    """Each category, with its subcategories below it: the number of questions, and the accuracy on them."""
    rows = []
    for category, value in summary["categories"].items():
        rows.append((f"  {category}", category, value))
        below = f"{category}/"
        subcategories = {key: value for key, value in summary["subcategories"].items() if key.startswith(below)}
        rows += [(f"    {key.removeprefix(below)}", key, value) for key, value in subcategories.items()]
    if not rows:
        return []
    width = max(len(label) for label, _, _ in rows)
    lines = [f"{'  category':{width}}  questions  accuracy"]
    counts = summary["questions_by_category"]
    return lines + [f"{label:{width}}  {counts[key]:9,}  {value:8.1%}" for label, key, value in rows]


UNTOLD = (
    "what compares with the language decoder before it was trained is left out: "
    "the model's run, if it has one, did not ask it these questions"
)
CONTROLS = {
    "shuffled": "pictures shuffled between them",
    "no_image": "without pictures",
    "bare_decoder": "without pictures, the language decoder before it was trained",
}
