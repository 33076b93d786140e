"""Each variant's scores on what all were asked, and its differences to the baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from nanovlm.lab.comparison import Costs, Score, VariantResult
from nanovlm.lab.costs import Savings, apart, measured_alike
from nanovlm.lab.flips import gains
from nanovlm.lab.pairing import unpaired
from nanovlm.lab.results import Result
from nanovlm.lab.shared import Asked, Groups, HeldOut
from nanovlm.lab.statistics import (
    Difference,
    holm,
    loss_difference,
    mcnemar,
    mean_loss,
    mean_over_seeds_and_items,
    paired_difference,
)
from nanovlm.lab.verdict import ACCURACY, LOSS, Finding, Measure, flags, is_blind


@dataclass(frozen=True)
class Lineup:
    """All variants, and what is known of each before it is scored.

    seeds: those that the variant and the baseline both have
    paired: whether its runs differ from the baseline's in nothing but its settings
    """

    groups: Groups
    baseline: str
    seeds: dict[str, list[int]]
    paired: dict[str, bool]
    savings: dict[str, Savings]

    @classmethod
    def of(cls, groups: Groups, baseline: str, costs: Mapping[str, Costs]) -> Lineup:
        base = groups[baseline]
        seeds, paired, savings = {}, {}, {}
        for variant, runs in groups.items():
            seeds[variant] = sorted({run.seed for run in base} & {run.seed for run in runs})
            shared = {name: [run for run in groups[name] if run.seed in seeds[variant]] for name in (baseline, variant)}
            paired[variant] = not unpaired(shared, baseline)
            speeds = measured_alike([*base, *runs]) and apart(runs, base)
            savings[variant] = Savings.of(costs[variant], costs[baseline], speeds)
        return cls(groups, baseline, seeds, paired, savings)

    @property
    def rivals(self) -> list[str]:
        """All but the baseline that have a seed in common with it."""
        return [variant for variant in self.groups if variant != self.baseline and self.seeds[variant]]

    def finding(
        self, variant: str, differences: Differences, items: int, measure: Measure = ACCURACY, blind: bool = False
    ) -> Finding:
        return Finding(
            variant=variant,
            baseline=self.baseline,
            difference=differences.found.get(variant),
            p_holm=differences.p_holm.get(variant),
            comparisons=len(differences.p_holm),
            seeds=len(self.seeds[variant]),
            items=items,
            savings=self.savings[variant],
            paired=self.paired[variant],
            mcnemar=differences.mcnemar.get(variant),
            measure=measure,
            blind=blind,
        )


@dataclass(frozen=True)
class Differences:
    """By variant: what it gains over the baseline, the p-values corrected over all of them, and McNemar's."""

    found: dict[str, Difference]
    p_holm: dict[str, float]
    mcnemar: dict[str, float | None]

    @classmethod
    def of(cls, found: dict[str, Difference], exact: dict[str, float | None] | None = None) -> Differences:
        p = {variant: difference.p for variant, difference in found.items() if difference.p is not None}
        return cls(found, dict(zip(p, holm(list(p.values())), strict=True)), exact or {})


def scores(lineup: Lineup, asked: Asked) -> dict[str, Score]:
    """By variant, on one benchmark."""
    differences, questions = accuracy_differences(lineup, asked), len(asked.questions)
    found = {}
    for variant, runs in lineup.groups.items():
        seeds = [run.seed for run in runs]
        accuracy = mean_over_seeds_and_items(asked.scores(variant, seeds))
        controls = controls_of(runs, asked.benchmark)
        unasked = without_control(runs, asked.benchmark, "no_image")
        finding = lineup.finding(variant, differences, questions, blind=is_blind(accuracy, controls))
        found[variant] = Score(
            accuracy=accuracy,
            questions=questions,
            controls=controls,
            categories={
                category: mean_over_seeds_and_items(asked.scores(variant, seeds, places))
                for category, places in asked.categories(variant).items()
            },
            difference=differences.found.get(variant),
            p_holm=differences.p_holm.get(variant),
            mcnemar=differences.mcnemar.get(variant),
            differing=sum(map(any, gains(asked, variant, lineup.baseline, lineup.seeds[variant]))),
            sentence="" if variant == lineup.baseline else finding.sentence,
            flags=tuple(flags(accuracy, controls, unasked, skipped(asked, variant), questions)),
        )
    return found


def accuracy_differences(lineup: Lineup, asked: Asked) -> Differences:
    found, exact = {}, {}
    for variant in lineup.rivals:
        seeds = lineup.seeds[variant]
        ours, theirs = asked.scores(variant, seeds), asked.scores(lineup.baseline, seeds)
        found[variant] = paired_difference(ours, theirs)
        exact[variant] = mcnemar(ours[0], theirs[0]) if len(seeds) == 1 else None
    return Differences.of(found, exact)


def controls_of(runs: Sequence[Result], benchmark: str) -> dict[str, float]:
    """Means over the seeds; a control that one of them lacks is left out."""
    by_run = [run.controls(benchmark) for run in runs]
    shared = [name for name in by_run[0] if all(name in controls for controls in by_run)]
    return {name: mean(controls[name] for controls in by_run) for name in shared}


def without_control(runs: Sequence[Result], benchmark: str, control: str) -> list[int]:
    """The seeds that lack a control which others have."""
    lacking = [run.seed for run in runs if control not in run.controls(benchmark)]
    return lacking if len(lacking) < len(runs) else []


def skipped(asked: Asked, variant: str) -> Counter[str]:
    """How many questions could not be asked, by reason, of the seed that has the most."""
    counts = [Counter(item.skipped for item in items if item.skipped) for items in asked.items[variant].values()]
    return max(counts, key=Counter.total)


def with_validation(lineup: Lineup, held_out: HeldOut, variants: Sequence[VariantResult]) -> list[VariantResult]:
    """The variants with their validation losses, and how these differ from the baseline's."""
    found = {}
    for variant in lineup.rivals:
        if variant in held_out.sums:
            ours, theirs = (held_out.losses(name, lineup.seeds[variant]) for name in (variant, lineup.baseline))
            found[variant] = loss_difference(ours, theirs, held_out.targets)
    differences = Differences.of(found)

    def completed(variant: VariantResult) -> VariantResult:
        if variant.name not in held_out.sums:
            return variant
        finding = lineup.finding(variant.name, differences, len(held_out.targets), LOSS)
        if variant.scores:  # what it costs is said with the accuracies
            finding = replace(finding, savings=Savings())
        return replace(
            variant,
            validation_loss=mean_loss(held_out.losses(variant.name, variant.seeds), held_out.targets),
            validation_difference=differences.found.get(variant.name),
            validation_p_holm=differences.p_holm.get(variant.name),
            validation_sentence="" if variant.name == lineup.baseline else finding.sentence,
        )

    return [completed(variant) for variant in variants]
