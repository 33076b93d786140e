"""``nanovlm ablate``: from one question in YAML to trained, evaluated runs of every variant and seed."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nanovlm.cli.compare import show
from nanovlm.cli.options import AsJson, Overrides, PluginFiles
from nanovlm.errors import ConfigError, NanoVLMError
from nanovlm.experiment import Training
from nanovlm.lab.ablation import Ablation, load_ablation
from nanovlm.lab.compare import compare
from nanovlm.lab.comparison import Comparison
from nanovlm.lab.gathering import gather
from nanovlm.lab.prospect import Prospect, plan_ablation
from nanovlm.lab.report.tables import duration, gibibytes, scaled
from nanovlm.lab.report.writer import write_report
from nanovlm.lab.sweep.board import Board
from nanovlm.lab.sweep.checks import runs_left
from nanovlm.lab.sweep.conductor import counted, run_sweep
from nanovlm.lab.sweep.jobs import Processes, Runner, Submitit, environments, submit_options
from nanovlm.lab.sweep.sweep import RunState, SweepRun
from nanovlm.lab.verdict import FEWEST_SEEDS
from nanovlm.merging import ABLATE, BUDGETS
from nanovlm.plugins import load_plugins
from nanovlm.training.interrupts import Stopped
from nanovlm.training.precision import choose_device


class Cluster(StrEnum):
    SLURM = "slurm"
    LOCAL = "local"


def command(
    file: Annotated[
        Path,
        typer.Argument(metavar="EXPERIMENT", help="A YAML file with an `ablate` section, or a name: pixel_shuffle."),
    ],
    overrides: Overrides = None,
    sweep_dir: Annotated[
        Path | None, typer.Option(help="Where all its runs go; by default runs/ablations/<name>.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs side by side, each with a GPU of its own; by default 1, on a cluster all."),
    ] = None,
    submit: Annotated[
        Cluster | None, typer.Option(help="Hand the runs to a cluster, by the library submitit; local tries that out.")
    ] = None,
    submit_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="For submitit, for example timeout_min=240 or slurm_partition=gpu."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it will take, and train nothing.")] = False,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Train every variant of an ablation with every seed; what is finished already is not repeated."""
    registries = load_plugins(plugin or ())
    ablation = load_ablation(file, overrides or ())
    prospect = plan_ablation(ablation, registries)
    console = Console(stderr=as_json)
    if plan and as_json:
        print(json.dumps(prospect.to_json(), indent=2))
        return
    folder = sweep_dir or Path("runs", "ablations", ablation.name)
    console.print(plan_table(ablation, prospect, runs_left(ablation, folder, registries)))
    if plan:
        return
    runner = make_runner(ablation, folder, jobs, submit, submit_option or [])
    if runner.slots > 1 and not submit:
        console.print("side by side, runs take from each other's speed: compare their accuracies, not their times")
    try:
        with Board(console, f"{ablation.name} in {folder}", runner.slots) as board:
            states = run_sweep(ablation, folder, registries, runner, board.show)
    except Stopped as stopped:
        raise Stopped(f"{stopped}; go on with {shlex.join(['nanovlm', *sys.argv[1:]])}") from None
    conclude(folder, states, as_json)


def make_runner(
    ablation: Ablation, folder: Path, jobs: int | None, submit: Cluster | None, options: Sequence[str]
) -> Runner:
    device = ablation.variants[0].experiment(ablation.seeds[0]).device
    given = submit_options(options)
    if not submit:
        if given:
            raise ConfigError("--submit-option is for --submit: name a cluster by it, or leave the option out")
        return Processes(environments(jobs or 1, choose_device(device).type))
    with_gpu = device != "cpu" if submit == Cluster.SLURM else choose_device(device).type == "cuda"
    everything = len(ablation.variants) * len(ablation.seeds)
    slots = jobs or (everything if submit == Cluster.SLURM else 1)
    return Submitit(submit.value, folder / "submitit", {"gpus_per_node": int(with_gpu), **given}, slots)


def plan_table(ablation: Ablation, prospect: Prospect, left: Sequence[SweepRun]) -> Table:
    """Every variant, the baseline first; and what the runs that are ``left`` take together."""
    shown = Table(title=f"{escape(ablation.name)}: the plan", title_justify="left", caption_justify="left")
    shown.add_column("variant", overflow="fold")
    for header in ("parameters", "image\ntokens", "FLOPs a\nsample", "GPU\nmemory", "budget"):
        shown.add_column(header, justify="right", no_wrap=True)
    for variant in ablation.variants:
        plan = prospect.plans[variant.name]
        training = variant.experiment(ablation.seeds[0]).training
        shown.add_row(
            escape(variant.name),
            f"{plan.total_parameters:,}",
            f"{plan.image_tokens:,}",
            scaled(plan.flops_per_sample),
            gibibytes(plan.memory_bytes),
            budget(training),
        )
    lines = (
        workload(ablation, prospect, left),
        "FLOPs (forward and backward) and memory are for samples of the greatest length",
        too_few_seeds(len(ablation.seeds)),
    )
    shown.caption = "\n".join(filter(None, lines))
    return shown


def workload(ablation: Ablation, prospect: Prospect, left: Sequence[SweepRun]) -> str:
    """How many runs there are, how many of them are left, and how long these take."""
    runs = len(ablation.variants) * len(ablation.seeds)
    seeds = f"{len(ablation.seeds)} seeds" if len(ablation.seeds) > 1 else "one seed"
    asked = f"{len(ablation.variants)} variants x {seeds} = {runs} runs"
    if not left:
        return f"{asked}, all done: nothing is left to train"
    some = f", {len(left)} of them left" if len(left) < runs else ""
    seconds = prospect.time_of(run.variant for run in left)
    return f"{asked}{some}, one after another: " + (
        f"about {duration(seconds)} on this machine" if seconds else "time unknown"
    )


def too_few_seeds(seeds: int) -> str:
    """What so few of them cannot tell; empty where there are enough."""
    if seeds >= FEWEST_SEEDS:
        return ""
    what = (
        "one seed says which of two checkpoints is better, and not which setting"
        if seeds == 1
        else f"{seeds} seeds find next to nothing, for they hardly tell how much seeds differ"
    )
    return f"{what}: use {FEWEST_SEEDS} or more ({ABLATE}.seeds={list(range(FEWEST_SEEDS))})"


def budget(training: Training) -> str:
    """``300 steps``."""
    key = next(key for key in BUDGETS if getattr(training, key))
    value = getattr(training, key)
    return f"{value:.3g} FLOPs" if key == "flops" else f"{value:,} {key}"


def conclude(folder: Path, states: Sequence[RunState], as_json: bool) -> None:
    """Compare what is finished, write the report, and say what it came to; exit status 1 if not all runs are done."""
    comparison, doubt = compare_sweep(folder)
    files = write_report(comparison, folder) if comparison else []
    if as_json:
        runs = [run_json(state) for state in states]
        print(json.dumps({"folder": str(folder), "runs": runs, "report": list(map(str, files))}, indent=2))
    else:
        print(f"\n{counted(states)}")
        for state in (state for state in states if state.state != "done"):
            print(f"  {state.variant}/s{state.seed} {state.state}: {state.reason}\n    {state.log}")
        if comparison:
            show(comparison)
        print("\nwhere everything is", *(f"  {place}" for place in (folder, *files)), sep="\n")
    if doubt:
        print(f"nanovlm: no report: {doubt}", file=sys.stderr)
    if any(state.state != "done" for state in states):
        print("nanovlm: not all runs are done; the same command tries the others again", file=sys.stderr)
        raise typer.Exit(1)


def compare_sweep(folder: Path) -> tuple[Comparison | None, str]:
    """What its finished runs come to; if that cannot be said, why."""
    try:
        chosen = gather([folder])
        return compare(chosen.groups, chosen.baseline, chosen.name, chosen.unfinished, common=True), ""
    except NanoVLMError as error:  # no run of the baseline has finished, say
        return None, str(error)


def run_json(state: RunState) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(state).items()}
