"""Going on with a run, as if it had never ended."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from nanovlm.blueprint import Recipe, choices_of
from nanovlm.errors import ConfigError
from nanovlm.evaluation.overlap import find_overlap
from nanovlm.experiment import Experiment, load_experiment
from nanovlm.files import write_whole
from nanovlm.plugins import load_plugins
from nanovlm.recorded_plugins import of_run
from nanovlm.training.checkpoint import Checkpoints
from nanovlm.training.distributed import Group
from nanovlm.training.launch import carry_out, check, fingerprint_data, lay_out_steps, open_everything, open_trackers
from nanovlm.training.run import Run
from nanovlm.training.state import MODEL, own
from nanovlm.training.trainer import Parts
from nanovlm.weights import load_weights, read_json
from nanovlm.yaml_reader import dump_yaml

# What may differ from the run's own experiment: its length, what is logged, and what only the hardware asks for.
LENGTH = ("training.steps", "training.samples", "training.epochs", "training.flops")
LOGGING = ("name", "training.log_every", "trackers", "checkpoints")
HARDWARE = (
    "device", "data.workers", "training.precision", "training.compile", "training.gradient_checkpointing",
    "training.tokens_per_row", "training.images_per_row", "training.rank_timeout",
)  # fmt: skip
FREE = LENGTH + LOGGING + HARDWARE


def resume(
    run_dir: str | Path,
    overrides: Sequence[str] = (),
    plugin_files: Sequence[str] = (),
    experiment: Experiment | None = None,
) -> dict[str, Any]:
    """Go on with a run from its newest whole checkpoint; what ``nanovlm.train`` gives.

    overrides: of the run's own experiment; another ``experiment`` may be given in its place. Raises ConfigError where
    that would make another run of it, where its data changed, and where another process trains in its folder;
    PluginError where a component is not installed any more.
    """
    run = Run.open(run_dir)
    registries = load_plugins(plugin_files or run.plugin_files)
    began_with = load_experiment(run.experiment)
    made = read_json(run.provenance) if run.has_begun else {}
    remarks = of_run(run.folder, made).check(choices_of(began_with), registries)
    remarks += of_run(run.folder, made | {"resumed": ()}).changed(choices_of(began_with), registries)
    recorded = Recipe.of(began_with, registries, resolve=False)
    chosen = experiment or load_experiment(run.experiment, overrides)
    recipe = Recipe.of(chosen, registries, resolve=experiment is not None)
    check_same(recorded.dump(), recipe.dump(), run)
    cost = check(recipe)
    with (
        Group.from_environment(chosen.device, chosen.training.rank_timeout) as group,
        run.locked() if group.is_main else nullcontext(),
    ):
        checkpoints = Checkpoints(run.checkpoints, chosen.checkpoints.keep_last)
        found = checkpoints.newest()
        done = found.step if found else 0
        group.agree("the checkpoint, which all ranks read in the run's folder", done)
        model, mixture, benchmarks = open_everything(recipe, group.device, pretrained=found is None)
        check_data(run, fingerprint_data(mixture))
        steps, held_out = lay_out_steps(recipe, model, mixture, group.ranks)
        if found:
            load_weights(model, found.tensors[MODEL], str(run.checkpoints), adapted=True)
            if done > len(steps):
                raise ConfigError(f"--resume {run.folder}: it has trained for {done} steps already, not {len(steps)}")
            steps = steps.resumed(done, own(found.facts["positions"], group.ranks))
        if group.is_main:
            run.rewind(done)
            run.record_resumption(recipe, model.device, done)
            write_whole(run.experiment, dump_yaml(recipe.dump()))
        overlap = find_overlap(recipe, mixture, benchmarks)
        notes = [*checkpoints.broken, *remarks, *overlap, f"going on after step {done}"]
        trackers, files = open_trackers(recipe, run, group), registries.files
        parts = Parts(
            chosen, model, steps, held_out, benchmarks, trackers, run, cost, files, found, checkpoints, notes, group
        )
        return carry_out(parts)


def check_same(recorded: dict[str, Any], asked: dict[str, Any], run: Run) -> None:
    """ConfigError with every difference that is not about length, logging or hardware."""
    if changes := differences(recorded, asked, FREE):
        lines = "".join(f"\n  {change}" for change in changes)
        raise ConfigError(
            f"--resume {run.folder}: only length, logging and hardware may change on the way:{lines}\n"
            "Leave the changes out, or begin a new run with them"
        )


def differences(recorded: dict[str, Any], asked: dict[str, Any], free: Sequence[str]) -> list[str]:
    """In words, each setting that differs between a run's experiment and another one, but for those that are ``free``.

    Both with every option written out (``Recipe.dump``).
    """
    before, now = (dict(flat(tree)) for tree in (recorded, asked))
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key) and not _is_one_of(free, key)]
    return [f"{key}: {before.get(key)!r} in the run, {now.get(key)!r} asked for" for key in keys]


def check_data(run: Run, data: str) -> None:
    """ConfigError where the training data are not those that the run began with."""
    if json.loads(run.provenance.read_text(encoding="utf-8"))["data"] != data:
        raise ConfigError(
            f"--resume {run.folder}: the training data are not those that it began with (other ids, or other content); "
            "restore them, or begin a new run"
        )


def _is_one_of(settings: Sequence[str], key: str) -> bool:
    return any(key == setting or key.startswith(f"{setting}.") for setting in settings)


def flat(tree: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Each value in nested mappings and lists by its dotted path."""
    pairs: Any = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else None
    if not pairs:
        yield above, tree
        return
    for key, value in pairs:
        yield from flat(value, f"{above}.{key}" if above else str(key))
