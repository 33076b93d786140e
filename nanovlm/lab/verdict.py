"""What a comparison comes to, in words: one sentence for each variant, and what makes its accuracy doubtful."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nanovlm.data.tally import describe
from nanovlm.lab.costs import Savings
from nanovlm.lab.statistics import Difference, Estimate

WITHOUT = {  # the controls that a model which looks must beat, in words
    "no_image": "without pictures",
    "shuffled": "with other questions' pictures",
}
HOPELESS = 0.5  # detectable, of an accuracy or in nats of a loss: no difference worth asking for is larger
ENOUGH_SEEDS, FEWEST_SEEDS, ENOUGH_ITEMS = 5, 3, 100
LEVEL = 0.05  # of a p after Holm's correction: a difference is one below it
PAIRED = (
    "runs of one seed saw the same samples in the same order, from the same initial weights wherever the variants' "
    "settings leave them"
)
BLIND = "though not by looking at the pictures"
ONE_SEED = "with one seed this says which of two checkpoints is better, not which setting"


@dataclass(frozen=True)
class Measure:
    """How a difference is said.

    scale: from the difference's unit to the one that is shown; per: what that is called
    items: what it was measured on; sign: -1 where less is better
    """

    scale: float
    decimals: int
    per: str
    items: str
    sign: int = 1

    def number(self, value: float) -> str:
        return f"{abs(value) * self.scale:.{self.decimals}f}"

    def signed(self, value: float) -> str:
        """Zero has no sign, and nothing that is shown as zero has one."""
        number = self.number(value)
        return number if not float(number) else f"{'-' if value < 0 else '+'}{number}"


ACCURACY = Measure(100, 1, " points", "items")
LOSS = Measure(1, 3, "", "held-out samples", sign=-1)


@dataclass(frozen=True)
class Finding:
    """A variant's difference to the baseline, and what it takes to say what it means.

    comparisons: how many variants Holm's correction was over
    seeds, items: how many of them the difference is of
    paired: whether runs of one seed differ in nothing but the variants' settings
    blind: whether the variant is right no more often than without the right pictures
    """

    variant: str
    baseline: str
    difference: Difference | None
    p_holm: float | None
    comparisons: int
    seeds: int
    items: int
    savings: Savings
    paired: bool = True
    mcnemar: float | None = None
    measure: Measure = ACCURACY
    blind: bool = False

    @property
    def sentence(self) -> str:
        """As in "factor=4: -2.1 points [-3.4, -0.8] against factor=2, 38 % fewer FLOPs: worse, cheaper"."""
        if self.difference is None:
            return f"{self.variant}: has no seed in common with {self.baseline}, so nothing can be said of a difference"
        what = "" if self.measure is ACCURACY else " in validation loss"
        against = (
            f"{self._interval(self.difference)}{what} against {self.baseline}{'' if self.paired else ', not paired'}"
        )
        found = ", ".join([against, *self.savings.in_words])
        return f"{self.variant}: {found}: {self._judgement(self.difference)}{self._caveat}"

    def _interval(self, difference: Difference) -> str:
        value = f"{self.measure.signed(difference.value)}{self.measure.per}"
        if difference.low is None or difference.high is None:
            return value
        return f"{value} [{self.measure.signed(difference.low)}, {self.measure.signed(difference.high)}]"

    def _judgement(self, difference: Difference) -> str:
        cost = self.savings.verdict
        if self.p_holm is not None and self.p_holm < LEVEL:
            better = difference.value * self.measure.sign > 0
            word = f"better, {BLIND}" if better and self.blind else "better" if better else "worse"
            return ", ".join([word, *([cost] if cost else [])])
        return "; ".join([self._doubt(difference), *([cost] if cost else [])])

    def _doubt(self, difference: Difference) -> str:
        if self.p_holm is None or difference.p is None:
            return "too little to judge by"
        if excludes_zero(difference):
            if self.comparisons == 1:
                return f"not certain (p = {probability(difference.p)})"
            return (
                f"not certain after correcting for {self.comparisons} comparisons "
                f"(p = {probability(difference.p)}, corrected {probability(self.p_holm)})"
            )
        if difference.detectable is None:
            return "no difference seen"
        asked = f"{'one seed' if self.seeds == 1 else f'{self.seeds} seeds'} and {self.items:,} {self.measure.items}"
        if difference.detectable > HOPELESS:
            return f"{asked} are too few to tell; use {self._enough}"
        return (
            f"no difference seen; with {asked} "
            f"one under {self.measure.number(difference.detectable)}{self.measure.per} would be missed"
        )

    @property
    def _enough(self) -> str:
        if self.seeds >= ENOUGH_SEEDS:
            return "more of both"
        fewest = f" ({FEWEST_SEEDS} find large differences only)" if self.seeds < FEWEST_SEEDS else ""
        items = f" and more {self.measure.items}" if self.items < ENOUGH_ITEMS else ""
        return f"{ENOUGH_SEEDS} seeds{fewest}{items}"

    @property
    def _caveat(self) -> str:
        if self.seeds > 1:
            return ""
        exact = "" if self.mcnemar is None else f"McNemar's exact p = {probability(self.mcnemar)}; "
        return f" ({exact}{ONE_SEED})"


def excludes_zero(difference: Difference) -> bool:
    if difference.low is None or difference.high is None:
        return False
    return difference.low > 0 or difference.high < 0


def probability(p: float) -> str:
    """Two digits, and three where two would put it on the level itself."""
    text = f"{p:.2g}"
    return text if float(text) != LEVEL or p == LEVEL else f"{p:.3g}"


def percent(value: float) -> str:
    return f"{value:.1%}".replace("%", " %")


def is_blind(accuracy: Estimate, controls: Mapping[str, float]) -> bool:
    """Whether it is right no more often than without pictures, or with those of other questions."""
    return any(accuracy.value <= controls[name] for name in WITHOUT if name in controls)


def flags(
    accuracy: Estimate, controls: Mapping[str, float], unasked: Sequence[int], skipped: Counter[str], questions: int
) -> list[str]:
    """What makes an accuracy doubtful.

    controls: those that all seeds were asked; the seeds ``unasked``, or all, lack the one without pictures
    skipped: questions that could not be asked, by reason, of the seed that has the most
    """
    found = []
    asked = {words: controls[name] for name, words in WITHOUT.items() if name in controls}
    if "no_image" not in controls:
        seeds = f" with seed {' and '.join(map(str, unasked))}" if unasked else ""
        found.append(f"was not asked without pictures{seeds}, so nothing says that it looks")
    if reached := [words for words, control in asked.items() if accuracy.value <= control]:
        found.append(f"does no better than {reached[0]} ({percent(asked[reached[0]])}): it does not look")
    elif asked and accuracy.low is not None:
        nearest = max(asked, key=asked.__getitem__)
        if accuracy.low <= asked[nearest]:
            found.append(f"may do no better than {nearest} ({percent(asked[nearest])} is in its interval)")
    if count := skipped.total():
        found.append(f"{count:,} of {questions:,} questions skipped, and counted as wrong: {describe(skipped)}")
    return found
