"""Runs with known scores, compared; the expected numbers are worked out by hand here."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hand_made import items, result, with_losses, with_provenance

from nanovlm import ConfigError
from nanovlm.lab.compare import compare
from nanovlm.lab.comparison import Comparison
from nanovlm.lab.statistics import holm, mcnemar, paired_difference

RIGHT, WRONG = 1.0, 0.0


def compared(*runs, **options) -> Comparison:
    """By factor; the first one is the baseline."""
    groups = {}
    for run in runs:
        groups.setdefault(f"factor={run.experiment['projector']['factor']}", []).append(run)
    return compare(groups, next(iter(groups)), "factors", **options)


def refusal(*runs, **options) -> str:
    with pytest.raises(ConfigError) as refused:
        compared(*runs, **options)
    return str(refused.value)


def score(comparison: Comparison, variant: str = "factor=4", benchmark: str = "shapes"):
    (found,) = (each for each in comparison.variants if each.name == variant)
    return found.scores[benchmark]


BASE = [[1, 1, 1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 1, 0, 0, 0]]  # 60 % and 60 %
OTHER = [[1, 1, 0, 0, 0, 0, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 1, 0, 0, 0]]  # 30 % and 40 %


def two_seeds(scores=OTHER, factor: int = 4):
    return [result(row, factor, seed) for seed, row in enumerate(scores)]


def test_accuracies_and_their_difference_are_means_over_seeds_and_items():
    comparison = compared(*two_seeds(BASE, 2), *two_seeds())
    assert comparison.baseline == "factor=2"
    assert comparison.benchmarks == ("shapes",)
    assert [variant.name for variant in comparison.variants] == ["factor=2", "factor=4"]
    assert [variant.changes for variant in comparison.variants] == [{}, {"projector.factor": 4}]
    assert [variant.seeds for variant in comparison.variants] == [(0, 1), (0, 1)]
    assert score(comparison, "factor=2").accuracy.value == pytest.approx(0.60)
    assert score(comparison).accuracy.value == pytest.approx(0.35)
    assert score(comparison).difference.value == pytest.approx(-0.25)
    assert score(comparison).difference == paired_difference(OTHER, BASE)
    assert score(comparison, "factor=2").difference is None
    assert score(comparison, "factor=2").sentence == ""


def test_the_order_of_runs_seeds_and_items_changes_nothing():
    runs = [*two_seeds(BASE, 2), *two_seeds()]
    shuffled = [replace(run, items={"shapes": run.items["shapes"][::-1]}) for run in (runs[1], runs[0], *runs[:1:-1])]
    there, here = score(compared(*runs)), score(compared(*shuffled))
    assert here.difference.value == pytest.approx(there.difference.value)
    assert here.difference.p == pytest.approx(there.difference.p)
    assert here.accuracy.low == pytest.approx(there.accuracy.low)


def test_the_baseline_comes_first_wherever_it_stood():
    groups = {"a": two_seeds(), "b": two_seeds(BASE, 2)}
    comparison = compare(groups, "b", "two")
    assert [variant.name for variant in comparison.variants] == ["b", "a"]


def test_a_baseline_that_is_not_there_names_those_that_are():
    with pytest.raises(ConfigError, match=r"unknown variant 'factor=3'\. Did you mean 'factor=2'"):
        compare({"factor=2": two_seeds()}, "factor=3", "x")


def test_by_category():
    found = score(compared(*two_seeds(BASE, 2), *two_seeds())).categories  # items 0, 2, 4, ... are of `colour`
    assert list(found) == ["colour", "number"]
    assert found["colour"].value == pytest.approx((2 + 3) / 10)
    assert found["number"].value == pytest.approx((1 + 1) / 10)


def test_a_subcategory_goes_by_both_names():
    runs = [result([1, 0]), result([0, 1], 4)]
    runs = [
        replace(run, items={"shapes": [replace(item, subcategory="red") for item in run.items["shapes"]]})
        for run in runs
    ]
    assert score(compared(*runs)).categories["number/red"].value == 1


def test_differences_are_over_the_seeds_that_both_have_and_accuracies_over_all():
    comparison = compared(*two_seeds(BASE, 2), result(OTHER[0], 4, seed=0), result([0] * 10, 4, seed=7))
    assert score(comparison).accuracy.value == pytest.approx(0.15)
    assert score(comparison).difference.value == pytest.approx(-0.3)
    assert score(comparison).mcnemar == mcnemar(OTHER[0], BASE[0])
    assert comparison.notes == (
        "factor=4: its differences are over seed 0 (factor=4 has no run of seed 1; factor=2 has no run of seed 7)",
    )
    assert comparison.unpaired == ()  # what is there is paired


def test_without_a_seed_in_common_nothing_is_said_of_a_difference():
    found = score(compared(result(BASE[0], 2, seed=0), result(OTHER[0], 4, seed=1)))
    assert found.difference is None
    assert found.sentence == "factor=4: has no seed in common with factor=2, so nothing can be said of a difference"


def test_only_runs_that_share_a_seed_can_be_pairs():
    ours = result(BASE[0], 2, seed=0)
    assert compared(ours, result(OTHER[0], 4, seed=0)).has_pairs
    assert not compared(ours, result(OTHER[0], 4, seed=1)).has_pairs
    assert not compared(ours).has_pairs


def test_one_seed_has_mcnemars_p_and_several_have_none():
    assert score(compared(result(BASE[0]), result(OTHER[0], 4))).mcnemar == pytest.approx(2 * (1 + 5) / 2**5)
    assert score(compared(*two_seeds(BASE, 2), *two_seeds())).mcnemar is None


def test_graded_scores_have_no_mcnemar():
    assert score(compared(result([0.5, 1, 0]), result([0, 1, 0.25], 4))).mcnemar is None


def test_holm_corrects_over_all_variants_of_a_benchmark():
    rows = {4: OTHER, 1: [[0] * 10] * 2, 16: BASE}
    comparison = compared(*two_seeds(BASE, 2), *(run for factor, row in rows.items() for run in two_seeds(row, factor)))
    corrected = holm([paired_difference(row, BASE).p for row in rows.values()])
    assert [score(comparison, f"factor={factor}").p_holm for factor in rows] == pytest.approx(corrected)
    assert score(comparison, "factor=2").p_holm is None


def test_two_runs_of_one_variant_and_seed_are_refused_and_both_named():
    again = replace(result(OTHER[0], 4), folder=Path("runs/again"))
    assert refusal(result(BASE[0]), result(OTHER[0], 4), again) == (
        "factor=4 has two runs of seed 0: runs/factor4-s0 and runs/again; leave one of them out"
    )


def test_questions_are_matched_by_id_text_and_answer_with_repeats_counted():
    base, other = result([1, 0, 1, 0]), result([0, 1, 1, 1], 4)
    twice = [replace(item, id="same", question="which?", answer="x") for item in items([1, 0])]
    base = replace(base, items={"shapes": [*base.items["shapes"], *twice]})
    swapped = [replace(twice[0], score=WRONG), replace(twice[1], score=RIGHT)]
    other = replace(other, items={"shapes": [swapped[0], *other.items["shapes"], swapped[1]]})
    found = score(compared(base, other))
    assert found.questions == 6
    assert found.difference.value == pytest.approx((3 + 1 - 2 - 1) / 6)


def test_a_repeat_too_few_is_another_set_of_questions():
    base, other = result([1, 0]), result([0, 1], 4)
    base = replace(base, items={"shapes": [*base.items["shapes"], base.items["shapes"][0]]})
    assert "factor=2 was asked 3 questions of shapes, factor=4 2; they have 2 in common" in refusal(base, other)


def test_other_questions_are_refused_with_how_many_are_common():
    some, more = result([1] * 6), result([0] * 10, 4)
    assert refusal(some, more) == (
        "factor=2 was asked 6 questions of shapes, factor=4 10; they have 6 in common; --common compares these"
    )


def test_common_questions_can_be_compared_and_a_note_says_so():
    comparison = compared(result([1] * 6), result([1, 0, 0, 0, 0, 0, 1, 1, 1, 1], 4), common=True)
    assert score(comparison).questions == 6
    assert score(comparison).accuracy.value == pytest.approx(1 / 6)
    assert score(comparison).difference.value == pytest.approx(-5 / 6)
    (note,) = comparison.notes
    assert note.startswith(
        "shapes: of up to 10 questions only those 6 count that all runs were asked; the controls are"
    )


def test_changed_answers_make_other_questions():
    run = result([1, 0, 1], 4)
    changed = replace(run, items={"shapes": [replace(item, answer="other") for item in run.items["shapes"]]})
    told = refusal(result([1, 1, 1]), changed)
    assert told.startswith("factor=2 was asked 3 questions of shapes, factor=4 3; they have none in common, so this")
    assert refusal(result([1, 1, 1]), changed, common=True) == told


def test_seeds_of_one_variant_that_were_asked_different_questions_are_named_by_their_folders():
    told = refusal(result([1, 0]), result([1, 0, 1], seed=1), result([1, 1], 4))
    assert told.startswith(
        "runs/factor2-s0 was asked 2 questions of shapes, runs/factor2-s1 3, factor=4 2; they have 2"
    )


def test_different_benchmarks_are_refused_with_those_that_each_has():
    both = result([1, 0])
    both = replace(both, items=both.items | {"mmstar": items([1])})
    assert refusal(both, result([1, 1], 4)) == (
        "the runs have different benchmarks (factor=2 has mmstar and shapes, factor=4 has shapes); "
        "--common compares shapes"
    )
    comparison = compared(both, result([1, 1], 4), common=True)
    assert comparison.benchmarks == ("shapes",)
    assert comparison.notes == (
        "only shapes can be compared, because the runs have different benchmarks: "
        "factor=2 has mmstar and shapes, factor=4 has shapes",
    )


def test_nothing_in_common_cannot_be_compared():
    had = "factor=2 has shapes, factor=4 has mmstar"
    told = f"nothing can be compared: no benchmark in common ({had}), and no validation losses"
    assert refusal(result([1]), result([1], 4, benchmark="mmstar")) == told
    assert refusal(result([1]), result([1], 4, benchmark="mmstar"), common=True) == told


TARGETS = [1, 2, 5]


def lossy(sums, factor: int = 2, seed: int = 0, targets=TARGETS, scores=()):
    return with_losses(result(scores, factor, seed), sums, targets)


def test_validation_losses_alone_can_be_compared():
    comparison = compared(
        *(lossy([2, 4, 10], seed=seed) for seed in (0, 1)), *(lossy([1, 2, 5 + seed], 4, seed) for seed in (0, 1))
    )
    base, other = comparison.variants
    assert comparison.benchmarks == ()
    assert base.validation_loss.value == pytest.approx(16 / 8)
    assert other.validation_loss.value == pytest.approx((8 + 9) / 2 / 8)
    assert other.validation_difference.value == pytest.approx((8 + 9) / 2 / 8 - 2)
    assert other.validation_p_holm == pytest.approx(other.validation_difference.p)
    assert other.validation_sentence.startswith("factor=4: -0.938 [")
    assert "in validation loss against factor=2" in other.validation_sentence
    assert base.validation_sentence == ""
    assert comparison.notes == ()


def test_where_no_benchmark_is_common_the_validation_losses_may_be():
    runs = lossy([2, 4, 10], scores=[1]), with_losses(result([1], 4, benchmark="mmstar"), [1, 2, 5], TARGETS)
    assert refusal(*runs).endswith("--common compares the validation losses")
    comparison = compared(*runs, common=True)
    assert comparison.variants[1].validation_difference.value == pytest.approx(-1)
    assert "only the validation losses can be compared" in comparison.notes[0]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (lossy([1, 2], 4, targets=[1, 2], scores=[1]), "is of other held-out samples (2 of 2 are the baseline's)"),
        (
            lossy([1] * 4, 4, targets=[1, 2, 5, 6], scores=[1]),
            "is of other held-out samples (3 of 4 are the baseline's)",
        ),
        (lossy([1] * 3, 4, targets=[1, 2, 6], scores=[1]), "is of other tokens (another tokenizer, template or ...)"),
        (result([1], 4, validation_loss=2.0), "was not kept by sample"),
        (lossy([1, float("nan"), 5], 4, scores=[1]), "is no finite number for some samples"),
    ],
)
def test_losses_of_other_samples_are_left_out_and_a_note_says_why(other, why):
    comparison = compared(lossy([2, 4, 10], scores=[1]), other)
    assert comparison.notes == (f"factor=4: its validation loss is left out, because it {why}",)
    assert comparison.variants[1].validation_loss is None
    assert comparison.variants[1].validation_sentence == ""


def test_samples_without_a_target_say_nothing():
    base, other = lossy([2, 4, 0], targets=[1, 2, 0], scores=[1]), lossy([1, 2, 0], 4, targets=[1, 2, 0], scores=[1])
    assert compared(base, other).variants[1].validation_loss.value == pytest.approx(1)


def test_questions_flip_where_most_seeds_agree():
    base = [[1, 0, 1, 0, 1, 0], [1, 0, 1, 0, 0, 0], [1, 0, 1, 0, 1, 1]]
    other = [[0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 1]]
    comparison = compared(*two_seeds(base, 2), *two_seeds(other))
    found = [(flip.id, flip.category, pytest.approx(flip.gained)) for flip in comparison.flips]
    assert found == [("item-0", "colour", -1), ("item-1", "number", 2 / 3)]
    assert comparison.flips[0].baseline_said == ("said 0: 1",) * 3
    assert comparison.flips[1].variant_said == ("said 1: 1", "said 1: 0", "said 1: 1")
    assert score(comparison).differing == 4  # questions 3 and 4, with some seed
    assert score(comparison, "factor=2").differing == 0


def test_with_one_seed_every_changed_answer_is_a_flip_sorted_by_category():
    comparison = compared(result([1, 1, 0, 0]), result([0, 0, 1, 0], 4))
    assert [(flip.id, flip.gained) for flip in comparison.flips] == [("item-0", -1), ("item-2", 1), ("item-1", -1)]


def test_controls_are_means_over_the_seeds():
    runs = two_seeds()
    runs[1].summary["benchmarks"]["shapes"]["controls"] = {"shuffled": 0.3, "no_image": 0.2}
    controls = score(compared(*two_seeds(BASE, 2), *runs)).controls
    assert controls == pytest.approx({"shuffled": 0.2, "no_image": 0.15})


def test_a_control_that_one_seed_lacks_is_left_out_and_said():
    runs = two_seeds()
    del runs[1].summary["benchmarks"]["shapes"]["controls"]["no_image"]
    found = score(compared(*two_seeds(BASE, 2), *runs))
    assert found.controls == pytest.approx({"shuffled": 0.1})
    assert found.flags == (
        "was not asked without pictures with seed 1, so nothing says that it looks",
        "may do no better than with other questions' pictures (10.0 % is in its interval)",
    )


def test_skipped_questions_are_flagged():
    base, other = result([1] * 30), result([1] * 30, 4)
    skipped = [replace(item, score=0.0, skipped="too long") for item in other.items["shapes"][:2]]
    other = replace(other, items={"shapes": [*skipped, *other.items["shapes"][2:]]})
    comparison = compared(base, other)
    assert score(comparison).flags == ("2 of 30 questions skipped, and counted as wrong: 2 too long",)
    assert score(comparison, "factor=2").flags == ()


def test_a_changed_component_is_named_as_what_breaks_the_pairs():
    weights = with_provenance(result(OTHER[0], 4), initial_weights={"vision_encoder": "9" * 64})
    comparison = compared(result(BASE[0]), weights)
    assert any("vision_encoder" in finding for finding in comparison.unpaired)
    assert "against factor=2, not paired" in score(comparison).sentence


def test_runs_that_differ_in_their_settings_only_are_paired():
    comparison = compared(*two_seeds(BASE, 2), *two_seeds())
    assert comparison.unpaired == ()
    assert "not paired" not in score(comparison).sentence


def test_a_comparison_is_json_without_the_runs_themselves():
    runs = [lossy([2, 4, 10], scores=BASE[0]), lossy([1, 4, 11], 4, scores=OTHER[0])]
    runs[1].summary["samples_per_second"] = float("nan")
    told = json.loads(json.dumps(compared(*runs).to_json(), allow_nan=False))
    base, other = told["variants"]
    assert base["runs"] == ["runs/factor2-s0"]
    assert other["changes"] == {"projector.factor": 4}
    assert other["scores"]["shapes"]["difference"]["value"] == pytest.approx(-0.3)
    assert other["validation_loss"]["value"] == pytest.approx(2)
    assert other["costs"]["samples_per_second"] is None  # JSON has no NaN
    assert {flip["id"] for flip in told["flips"]} == {"item-2", "item-3", "item-4", "item-5", "item-6"}


def test_one_variant_alone_has_its_accuracy_and_nothing_to_be_compared_with():
    comparison = compared(*two_seeds(BASE, 2))
    assert score(comparison, "factor=2").accuracy.value == pytest.approx(0.6)
    assert (comparison.flips, comparison.unpaired) == ((), ())
