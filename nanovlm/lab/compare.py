"""From finished runs, grouped by variant, to a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nanovlm.blueprint import collected
from nanovlm.errors import ConfigError, unknown
from nanovlm.lab import pairing
from nanovlm.lab.comparison import Comparison, Unfinished, VariantResult
from nanovlm.lab.costs import costs_of
from nanovlm.lab.flips import flips
from nanovlm.lab.results import Result
from nanovlm.lab.scoring import Lineup, scores, with_validation
from nanovlm.lab.settings import settings_apart
from nanovlm.lab.shared import Asked, Groups, share_held_out, share_questions


def compare(
    groups: Groups, baseline: str, name: str, unfinished: Sequence[Unfinished] = (), common: bool = False
) -> Comparison:
    """Compare runs, given by variant, with those of the ``baseline``.

    common: where runs were asked different questions, or on different benchmarks, compare what all of them have.
    Raises ConfigError for what cannot be compared, with all problems at once.
    """
    if baseline not in groups:
        raise ConfigError(unknown("variant", baseline, groups))
    groups = {baseline: groups[baseline], **groups}
    check_seeds(groups)
    held_out = share_held_out(groups, baseline)
    benchmarks, notes = shared_benchmarks(groups, len(held_out.sums) >= min(2, len(groups)), common)
    asked = match_all(benchmarks, groups, common)
    costs, cost_notes = costs_of(groups)
    notes += [*left_out(asked, groups), *held_out.notes, *missing_seeds(groups, baseline)]
    notes += [*over_shared_seeds(pairing.notes, groups, baseline), *cost_notes]
    lineup = Lineup.of(groups, baseline, costs)
    by_benchmark = {one.benchmark: scores(lineup, one) for one in asked}
    variants = [
        VariantResult(
            name=variant,
            changes=settings_apart(runs[0].experiment, groups[baseline][0].experiment),
            runs=tuple(runs),
            seeds=tuple(run.seed for run in runs),
            costs=costs[variant],
            scores={benchmark: by_variant[variant] for benchmark, by_variant in by_benchmark.items()},
        )
        for variant, runs in groups.items()
    ]
    return Comparison(
        name=name,
        baseline=baseline,
        benchmarks=tuple(benchmarks),
        variants=tuple(with_validation(lineup, held_out, variants)),
        flips=tuple(
            flip
            for one in asked
            for rival in lineup.rivals
            for flip in flips(one, rival, baseline, lineup.seeds[rival])
        ),
        unpaired=tuple(over_shared_seeds(pairing.unpaired, groups, baseline)),
        unfinished=tuple(unfinished),
        notes=tuple(notes),
    )


def check_seeds(groups: Groups) -> None:
    """ConfigError where a variant has two runs of one seed."""
    with collected() as problems:
        for variant, runs in groups.items():
            first: dict[int, Result] = {}
            for run in runs:
                with problems:
                    if (other := first.setdefault(run.seed, run)) is not run:
                        raise ConfigError(
                            f"{variant} has two runs of seed {run.seed}: {other.folder} and {run.folder}; "
                            "leave one of them out"
                        )


def shared_benchmarks(groups: Groups, losses: bool, common: bool) -> tuple[list[str], list[str]]:
    """Those that all runs have, and what is to be said of the others.

    losses: whether there are validation losses to compare.
    """
    by_run = [run.items.keys() for runs in groups.values() for run in runs]
    shared = [benchmark for benchmark in by_run[0] if all(benchmark in benchmarks for benchmarks in by_run)]
    had = {variant: sorted({name for run in runs for name in run.items}) for variant, runs in groups.items()}
    listed = ", ".join(f"{variant} has {' and '.join(names) or 'none'}" for variant, names in had.items())
    if not shared and not losses:
        raise ConfigError(f"nothing can be compared: no benchmark in common ({listed}), and no validation losses")
    if all(len(benchmarks) == len(shared) for benchmarks in by_run):
        return shared, []
    what = " and ".join(shared) or "the validation losses"
    if not common:
        raise ConfigError(f"the runs have different benchmarks ({listed}); --common compares {what}")
    return shared, [f"only {what} can be compared, because the runs have different benchmarks: {listed}"]


def match_all(benchmarks: Sequence[str], groups: Groups, common: bool) -> list[Asked]:
    asked = []
    with collected() as problems:
        for benchmark in benchmarks:
            with problems:
                asked.append(share_questions(benchmark, groups, common))
    return asked


def left_out(asked: Sequence[Asked], groups: Groups) -> list[str]:
    """What is to be said of questions that not all runs were asked."""
    found = []
    for one in asked:
        count = len(one.questions)
        most = max(len(run.items[one.benchmark]) for runs in groups.values() for run in runs)
        if most > count:
            found.append(
                f"{one.benchmark}: of up to {most:,} questions only those {count:,} count that all runs were asked; "
                "the controls are over all that a run was asked"
            )
    return found


def missing_seeds(groups: Groups, baseline: str) -> list[str]:
    """What is to be said of variants whose seeds are not the baseline's."""
    base, found = seeds_of(groups[baseline]), []
    for variant, runs in groups.items():
        seeds = seeds_of(runs)
        lacking = {variant: base - seeds, baseline: seeds - base}
        if seeds & base and seeds != base:
            lacks = "; ".join(f"{name} has no run of {seeds_in_words(lost)}" for name, lost in lacking.items() if lost)
            found.append(f"{variant}: its differences are over {seeds_in_words(seeds & base)} ({lacks})")
    return found


def over_shared_seeds(findings: Callable[[Groups, str], list[str]], groups: Groups, baseline: str) -> list[str]:
    """What is found between runs of the seeds that a variant and the baseline both have."""
    alike: dict[frozenset[int], list[str]] = {}
    for variant, runs in groups.items():
        alike.setdefault(frozenset(seeds_of(runs) & seeds_of(groups[baseline])), []).append(variant)
    found: list[str] = []
    for seeds, variants in alike.items():
        chosen = {
            name: [run for run in groups[name] if run.seed in seeds] for name in dict.fromkeys([baseline, *variants])
        }
        found += findings(chosen, baseline)
    return list(dict.fromkeys(found))


def seeds_of(runs: Sequence[Result]) -> set[int]:
    return {run.seed for run in runs}


def seeds_in_words(seeds: set[int]) -> str:
    numbers = " and ".join(map(str, sorted(seeds)))
    return f"seed {numbers}" if len(seeds) == 1 else f"seeds {numbers}"
