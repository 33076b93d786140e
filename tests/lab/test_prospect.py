"""Planning all variants: what works is planned like any experiment, all that does not is said at once, and once."""

import pytest
import torch
from tiny import QUICKSTART, SIZES

from nanovlm import ConfigError
from nanovlm.blueprint import Recipe
from nanovlm.lab import prospect
from nanovlm.lab.ablation import Ablation, load_ablation
from nanovlm.lab.problems import said_once
from nanovlm.planning import plan

PEAK = 1e9  # of the machine that the tests imagine
FALLING = "training.schedule=warmup_stable_decay"


@pytest.fixture(autouse=True)
def _no_measurement(monkeypatch):
    """What this machine can do takes a second to be found out."""
    prospect._peak.cache_clear()
    monkeypatch.setattr(prospect, "measured_peak", lambda device, dtype: PEAK)
    yield
    prospect._peak.cache_clear()


@pytest.fixture
def ablation(tmp_path):
    """The tiny quickstart with this `ablate` section, and overrides."""

    def ablation(section: str, *overrides: str) -> Ablation:
        file = tmp_path / "question.yaml"
        file.write_text(f"extends: {QUICKSTART}\nablate: {section}\n", encoding="utf-8")
        budget = [] if any(text.startswith("training.") for text in overrides) else ["training.steps=3"]
        return load_ablation(file, [*(size for size in SIZES if size != "training.steps=3"), *budget, *overrides])

    return ablation


@pytest.fixture
def planned(ablation, registries):
    return lambda section, *overrides: prospect.plan_ablation(ablation(section, *overrides), registries)


@pytest.fixture
def error(planned):
    def error(section: str, *overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            planned(section, *overrides)
        return str(caught.value)

    return error


def factors(*values: object, more: str = "") -> str:
    listed = ", ".join(map(str, values))
    return f"{{axes: {{projector.factor: [{listed}]}}, baseline: {{projector.factor: {values[0]}}}{more}}}"


# What works


def test_every_variant_is_planned_like_an_experiment_of_its_own(ablation, registries):
    asked = ablation(factors(2, 1, 4))
    plans = prospect.plan_ablation(asked, registries).plans
    assert list(plans) == ["factor=2", "factor=1", "factor=4"]
    assert plans == {v.name: plan(Recipe.of(v.experiment(0), registries)) for v in asked.variants}
    assert [each.image_tokens for each in plans.values()] == [4, 16, 1]
    assert [each.name for each in plans.values()] == [f"question-factor={r}" for r in (2, 1, 4)]


def test_more_seeds_are_no_more_to_plan(planned, monkeypatch):
    calls = []
    monkeypatch.setattr(prospect, "plan", lambda recipe: calls.append(recipe) or plan(recipe))
    planned(factors(2, 1, more=", seeds: [0, 1, 2, 3]"))
    assert len(calls) == 2


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
def test_the_time_is_that_of_all_runs_samples_as_if_they_were_the_longest(planned, seeds):
    found = planned(factors(2, 1, more=f", seeds: {seeds}"))
    samples = 3 * 8  # SIZES: 3 steps of 8
    training = sum(each.flops_per_sample for each in found.plans.values()) * samples / (PEAK * prospect.UTILISATION)
    assert found.seconds == pytest.approx(len(seeds) * (training + 2 * prospect.STARTUP_SECONDS))


def test_the_time_of_some_runs_is_that_of_their_variants(planned):
    found = planned(factors(2, 1, more=", seeds: [0, 1]"))
    assert found.time_of(["factor=2", "factor=1"] * 2) == pytest.approx(found.seconds)
    assert found.time_of([]) == 0
    some = found.time_of(["factor=1", "factor=2", "factor=2"])
    assert some + found.time_of(["factor=1"]) == pytest.approx(found.seconds)


def test_a_budget_of_flops_is_a_time_whatever_a_sample_costs(planned):
    found = planned(factors(2, 1, more=", seeds: [0], match: flops"), "training.flops=5e9")
    assert found.seconds == pytest.approx(2 * (5e9 / (PEAK * prospect.UTILISATION) + prospect.STARTUP_SECONDS))


def test_epochs_have_no_time_before_the_data_are_read(planned):
    found = planned(factors(2, 1), "training.epochs=1")
    assert found.seconds is None and found.time_of(["factor=1"]) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_elsewhere_can_be_planned_for_without_a_time(planned):
    found = planned(factors(2, 1), "device=cuda")
    assert (len(found.plans), found.seconds) == (2, None)


def test_as_json(planned):
    found = planned(factors(2, 1))
    content = found.to_json()
    assert content["seconds"] == found.seconds
    assert content["variants"]["factor=1"] == found.plans["factor=1"].to_json()


# What does not


def test_a_variant_that_cannot_work_is_named(error):
    assert error(factors(2, 3)) == "factor=3: projector: factor=3 must divide the 4 x 4 patch grid; 1, 2, 4 do"


def test_an_axis_that_no_component_has_is_said_once_and_for_all(error):
    section = "{axes: {projector.facter: [1, 2, 4]}, baseline: {projector.facter: 2}}"
    assert error(section) == "projector: unknown option 'facter'. Did you mean 'factor'?\n  Known here: factor"


def test_an_axis_that_no_experiment_has(error):
    first, second = error("{axes: {projektor.factor: [1, 2]}, baseline: {projektor.factor: 2}}").splitlines()
    assert first == "experiment: unknown option 'projektor'. Did you mean 'projector'?"
    assert second.startswith("  Known here: ablate, benchmarks,")


def test_an_axis_that_only_some_components_have(error):
    axes = "{projector: [pixel_shuffle, mlp], projector.factor: [1, 2]}"
    message = error(f"{{axes: {axes}, baseline: {{projector: pixel_shuffle, projector.factor: 2}}}}")
    assert message == "projector=mlp: projector: unknown option 'factor'.\n  Known here: nothing"


def test_a_value_of_the_wrong_type(error):
    assert error(factors(2, "two")).splitlines()[0] == (
        "factor=two: projector.factor='two': input should be a valid integer"
    )


def test_a_component_that_there_is_not(error):
    message = error("{axes: {projector: [pixel_shuffle, resampeler]}, baseline: {projector: pixel_shuffle}}")
    assert message.startswith(
        "projector=resampeler: projector: unknown projector 'resampeler'. Did you mean 'resampler'?"
    )


def test_variants_that_come_to_the_same_once_every_default_is_written_out(error):
    message = error("{variants: {as_it_is: {}, two: {projector.factor: 2}, one: {projector.factor: 1}}, baseline: one}")
    assert message == "as_it_is, two come to the same experiment; leave all but one of them out"


def test_variants_that_differ_in_what_nothing_reads(error, planned):
    reason = "nothing reads training.decay, because training.schedule is cosine"
    assert error("{variants: {as_it_is: {}, decay: {training.decay: 0.5}}, baseline: as_it_is}") == (
        f"as_it_is, decay come to the same experiment ({reason}); leave all but one of them out"
    )
    planned("{axes: {training.decay: [0.2, 0.5]}, baseline: {training.decay: 0.2}}", FALLING)


def test_a_setting_that_no_variant_reads(error, planned):
    assert error(factors(2, 1), "training.decay=0.5") == (
        "override training.decay=0.5: nothing reads it, because training.schedule is cosine; "
        f"leave it out, or set {FALLING}"
    )
    axes = "{axes: {training.schedule: [cosine, warmup_stable_decay]}, baseline: {training.schedule: cosine}}"
    planned(axes, "training.decay=0.5")  # one of them reads it


@pytest.mark.parametrize("budget", ["training.steps=5", "training.samples=40"])
def test_equal_flops_need_a_budget_of_flops_and_it_says_how_many(error, planned, budget):
    flops = 40 * planned(factors(2, 1)).plans["factor=2"].flops_per_sample
    named = budget.partition("=")[0]
    assert error(factors(2, 1, more=", match: flops"), budget) == (
        f"ablate.match=flops: the budget must be training.flops, in the place of {named}; "
        f"for factor=2 {budget} comes to at most {flops:.2g}"
    )


def test_equal_flops_in_the_place_of_epochs(error):
    assert error(factors(2, 1, more=", match: flops"), "training.epochs=1") == (
        "ablate.match=flops: the budget must be training.flops, in the place of training.epochs"
    )


def test_all_problems_of_all_variants_at_once_and_each_of_them_once(error):
    section = """
  axes:
    projector.factor: [2, 3, x]
    training.schedule: [cosine, cosin]
  variants: {one: {projector: mlp}, other: {projector.name: mlp}, long: {data.max_text_tokens: 5000}}
  baseline: {projector.factor: 2, training.schedule: cosine}
"""
    lines = [line for line in error(section).splitlines() if not line.startswith("  ")]
    assert lines == [
        "- schedule=cosin: training.schedule='cosin': input should be 'cosine', 'warmup_stable_decay' or 'constant'",
        "- factor=3,schedule=cosine: projector: factor=3 must divide the 4 x 4 patch grid; 1, 2, 4 do",
        "- factor=x,schedule=cosine: projector.factor='x': input should be a valid integer",
        "- long: training.tokens_per_row=1024: the longest sample takes 5000 text + 1 x 4 image tokens = 5004; "
        "raise it, or lower data.max_text_tokens or data.max_images",
        "- one, other come to the same experiment; leave all but one of them out",
    ]


# How problems are named

GRID = [f"factor={r},size={size}" for r in (1, 2, 3) for size in ("small", "large")]


@pytest.mark.parametrize(
    ("having", "expected"),
    [
        (GRID, "wrong"),
        (GRID[:1], "factor=1,size=small: wrong"),
        (GRID[:2], "factor=1: wrong"),
        (GRID[::2], "size=small: wrong"),
        ([GRID[0], GRID[3]], "factor=1,size=small, factor=2,size=large: wrong"),
        (GRID[:5], "factor=1,size=small, factor=1,size=large, factor=2,size=small and 2 more: wrong"),
    ],
)
def test_who_has_a_problem_is_said_in_as_few_words_as_do(having, expected):
    assert said_once({variant: ["wrong"] for variant in having}, GRID) == [expected]


def test_a_problem_may_be_hidden_by_another_one():
    problems = {GRID[0]: ["earlier"], GRID[2]: ["wrong"], GRID[4]: ["wrong"]}
    assert said_once(problems, GRID) == ["factor=1,size=small: earlier", "size=small: wrong"]


def test_problems_that_were_joined_are_told_apart():
    joined = "- one\n  Known here: a\n- two"
    assert said_once({"a": [joined], "b": ["two"]}, ["a", "b"]) == ["a: one\n  Known here: a", "two"]
