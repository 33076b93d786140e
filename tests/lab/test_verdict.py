"""What a difference is said to mean, and what makes an accuracy doubtful."""

from collections import Counter
from dataclasses import replace

import pytest

from nanovlm.lab.costs import Savings
from nanovlm.lab.statistics import Difference, Estimate
from nanovlm.lab.verdict import ACCURACY, LOSS, Finding, flags, is_blind, probability

WORSE = Difference(-0.021, -0.034, -0.008, p=0.002, detectable=0.018)
BETTER = Difference(0.021, 0.008, 0.034, p=0.002, detectable=0.018)
NO_IMAGE = {"no_image": 0.232}
NOTHING = Difference(0.004, -0.013, 0.021, p=0.6, detectable=0.024)
CHEAPER = Savings(flops=0.62, speed=1.6, samples=1.0)
DEARER = Savings(flops=1.3, speed=0.55, samples=1.0)


def finding(difference=WORSE, p_holm=None, savings=CHEAPER, **changes) -> Finding:
    corrected = difference.p if difference and p_holm is None else p_holm
    base = Finding("factor=4", "factor=2", difference, corrected, comparisons=3, seeds=3, items=600, savings=savings)
    return replace(base, **changes)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            finding(),
            "factor=4: -2.1 points [-3.4, -0.8] against factor=2, 38 % fewer FLOPs, 1.6 x the speed: worse, cheaper",
        ),
        (
            finding(BETTER, savings=DEARER),
            "factor=4: +2.1 points [+0.8, +3.4] against factor=2, 30 % more FLOPs, 0.55 x the speed: better, dearer",
        ),
        (finding(BETTER, savings=Savings()), "factor=4: +2.1 points [+0.8, +3.4] against factor=2: better"),
        (
            finding(NOTHING),
            "factor=4: +0.4 points [-1.3, +2.1] against factor=2, 38 % fewer FLOPs, 1.6 x the speed: "
            "no difference seen; with 3 seeds and 600 items one under 2.4 points would be missed; cheaper",
        ),
        (
            finding(NOTHING, savings=Savings(), items=1500),
            "factor=4: +0.4 points [-1.3, +2.1] against factor=2: "
            "no difference seen; with 3 seeds and 1,500 items one under 2.4 points would be missed",
        ),
        (
            finding(replace(WORSE, p=0.03), p_holm=0.09, savings=Savings()),
            "factor=4: -2.1 points [-3.4, -0.8] against factor=2: "
            "not certain after correcting for 3 comparisons (p = 0.03, corrected 0.09)",
        ),
        (
            finding(replace(WORSE, p=0.052), savings=Savings(), comparisons=1),
            "factor=4: -2.1 points [-3.4, -0.8] against factor=2: not certain (p = 0.052)",
        ),
        (
            finding(savings=Savings(), paired=False),
            "factor=4: -2.1 points [-3.4, -0.8] against factor=2, not paired: worse",
        ),
        (
            finding(Difference(0.1), savings=Savings()),
            "factor=4: +10.0 points against factor=2: too little to judge by",
        ),
        (
            finding(None),
            "factor=4: has no seed in common with factor=2, so nothing can be said of a difference",
        ),
        (
            finding(Difference(-0.0214, -0.03, -0.01, p=0.001), measure=LOSS, savings=CHEAPER),
            "factor=4: -0.021 [-0.030, -0.010] in validation loss against factor=2, 38 % fewer FLOPs, 1.6 x the speed: "
            "better, cheaper",
        ),
        (
            finding(Difference(0.01, -0.03, 0.05, p=0.5, detectable=0.0456), measure=LOSS, savings=Savings(), items=80),
            "factor=4: +0.010 [-0.030, +0.050] in validation loss against factor=2: "
            "no difference seen; with 3 seeds and 80 held-out samples one under 0.046 would be missed",
        ),
        (
            finding(Difference(-0.004, -1.0, 0.997, p=0.97, detectable=1.0), savings=DEARER, seeds=2, items=400),
            "factor=4: -0.4 points [-100.0, +99.7] against factor=2, 30 % more FLOPs, 0.55 x the speed: "
            "2 seeds and 400 items are too few to tell; use 5 seeds (3 find large differences only); dearer",
        ),
    ],
)
def test_the_verdict_in_words(found, sentence):
    assert found.sentence == sentence


def test_one_seed_speaks_of_two_checkpoints_only():
    which = "with one seed this says which of two checkpoints is better, not which setting)"
    assert finding(seeds=1, mcnemar=0.0123).sentence.endswith(f": worse, cheaper (McNemar's exact p = 0.012; {which}")
    assert finding(seeds=1).sentence.endswith(f": worse, cheaper ({which}")
    assert (
        "with one seed and 600 items one under 2.4 points would be missed; cheap" in finding(NOTHING, seeds=1).sentence
    )


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        (1, "one seed and 8 items are too few to tell; use 5 seeds (3 find large differences only) and more items"),
        (2, "2 seeds and 8 items are too few to tell; use 5 seeds (3 find large differences only) and more items"),
        (4, "4 seeds and 8 items are too few to tell; use 5 seeds and more items"),
        (5, "5 seeds and 8 items are too few to tell; use more of both"),
    ],
)
def test_where_nothing_could_be_found_it_is_said_how_much_more_it_takes(seeds, words):
    hopeless = replace(NOTHING, detectable=0.51)
    assert f": {words}" in finding(hopeless, seeds=seeds, items=8, savings=Savings()).sentence
    told = finding(replace(NOTHING, detectable=0.5), seeds=seeds, items=8).sentence
    assert "8 items one under 50.0 points would be missed" in told
    losses = finding(hopeless, seeds=seeds, items=8, measure=LOSS).sentence
    assert "8 held-out samples are too few to tell" in losses


@pytest.mark.parametrize("p", [0.0499, 0.04, 1e-9])
@pytest.mark.parametrize("value", [0.02, -0.02])
def test_better_or_worse_is_said_below_the_level_only(p, value):
    difference = Difference(value, min(0, 2 * value), max(0, 2 * value), p=p)
    word = "better" if value > 0 else "worse"
    assert word in finding(difference, p_holm=p).sentence
    assert not any(each in finding(difference, p_holm=0.05).sentence for each in ("better", "worse"))


@pytest.mark.parametrize("value", [0.0, -0.0, 0.0004, -0.0004])
def test_what_is_shown_as_zero_has_no_sign(value):
    assert ACCURACY.signed(value) == "0.0"
    assert finding(Difference(value, -0.02, 0.02, p=1.0)).sentence.startswith("factor=4: 0.0 points [-2.0, +2.0]")


@pytest.mark.parametrize(
    ("p", "text"), [(0.03, "0.03"), (0.0504, "0.0504"), (0.0496, "0.0496"), (1, "1"), (2e-5, "2e-05")]
)
def test_a_probability_is_never_rounded_onto_the_level(p, text):
    assert probability(p) == text


@pytest.mark.parametrize(
    ("savings", "words", "verdict"),
    [
        (Savings(), [], ""),
        (Savings(1.0, 1.0, 1.0), [], ""),
        (Savings(1.004, 1.03, 1.0), [], ""),
        (Savings(0.986, None, 1.0), ["1.4 % fewer FLOPs"], "cheaper"),
        (Savings(1.25, None, 1.0), ["25 % more FLOPs"], "dearer"),
        (Savings(0.004, None, 1.0), ["99.6 % fewer FLOPs"], "cheaper"),
        (Savings(0.00004, None, 1.0), ["more than 99.9 % fewer FLOPs"], "cheaper"),
        (Savings(None, 1.25, 1.0), ["1.2 x the speed"], "cheaper"),
        (Savings(12.4, 0.1, 1.0), ["12 x as many FLOPs", "0.1 x the speed"], "dearer"),
        (Savings(0.5, 0.8, 1.0), ["50 % fewer FLOPs", "0.8 x the speed"], "cheaper in FLOPs, dearer in time"),
        (Savings(1.5, 1.2, 1.0), ["50 % more FLOPs", "1.2 x the speed"], "dearer in FLOPs, cheaper in time"),
        (Savings(0.5, None, 2.0), ["2 x as many samples", "50 % fewer FLOPs a sample"], ""),
        (Savings(1.0, None, 0.5), ["50 % fewer samples"], "cheaper"),
        (Savings(0.5, 2.0, 1.5), ["50 % more samples", "50 % fewer FLOPs a sample", "2 x the speed"], "cheaper"),
    ],
)
def test_savings_are_of_the_whole_training(savings, words, verdict):
    assert (savings.in_words, savings.verdict) == (words, verdict)


@pytest.mark.parametrize(
    ("accuracy", "controls", "flag"),
    [
        (Estimate(0.2, 0.15, 0.25), NO_IMAGE, "does no better than without pictures (23.2 %): it does not look"),
        (Estimate(0.232, 0.2, 0.3), NO_IMAGE, "does no better than without pictures (23.2 %): it does not look"),
        (Estimate(0.25, 0.2, 0.3), NO_IMAGE, "may do no better than without pictures (23.2 % is in its interval)"),
        (Estimate(0.35, 0.3, 0.4), {}, "was not asked without pictures, so nothing says that it looks"),
        (
            Estimate(0.28, 0.25, 0.31),
            {"no_image": 0.2, "shuffled": 0.295},
            "does no better than with other questions' pictures (29.5 %): it does not look",
        ),
        (
            Estimate(0.3, 0.04, 0.5),
            {"no_image": 0.051, "shuffled": 0.284},
            "may do no better than with other questions' pictures (28.4 % is in its interval)",
        ),
        (
            Estimate(0.3, 0.04, 0.5),
            {"no_image": 0.284, "shuffled": 0.051},
            "may do no better than without pictures (28.4 % is in its interval)",
        ),
        (
            Estimate(0.3, 0.25, 0.5),
            {"no_image": 0.051, "shuffled": 0.284},
            "may do no better than with other questions' pictures (28.4 % is in its interval)",
        ),
        (
            Estimate(0.2, 0.15, 0.25),
            {"no_image": 0.232, "shuffled": 0.3},
            "does no better than without pictures (23.2 %): it does not look",
        ),
    ],
)
def test_a_model_that_does_not_look_is_flagged(accuracy, controls, flag):
    assert flags(accuracy, controls, [], Counter(), 600) == [flag]


def test_better_without_looking_is_said_to_be_so():
    difference = Difference(0.1, 0.05, 0.15, 0.001, 0.04)
    found = Finding("b", "a", difference, 0.001, 1, 3, 600, Savings(), blind=True)
    assert found.sentence.endswith(": better, though not by looking at the pictures")
    assert replace(found, blind=False).sentence.endswith(": better")
    assert is_blind(Estimate(0.28), {"shuffled": 0.3}) and not is_blind(Estimate(0.28), {"shuffled": 0.2})


def test_nothing_is_flagged_without_a_reason():
    assert flags(Estimate(0.35, 0.3, 0.4), {"no_image": 0.232, "shuffled": 0.29}, [], Counter(), 600) == []
    assert flags(Estimate(0.35), {"no_image": 0.232}, [], Counter(), 600) == []


def test_skipped_questions_and_missing_controls_are_flagged_together():
    found = flags(Estimate(0.35, 0.3, 0.4), {}, [1, 4], Counter({"too long": 3, "undecodable image": 1}), 1500)
    assert found == [
        "was not asked without pictures with seed 1 and 4, so nothing says that it looks",
        "4 of 1,500 questions skipped, and counted as wrong: 3 too long, 1 undecodable image",
    ]
