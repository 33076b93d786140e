"""What runs took, against counts of their own."""

from dataclasses import replace
from pathlib import Path

import pytest
from hand_made import result, with_provenance
from tiny import tiny_experiment, tiny_recipe

from nanovlm import train
from nanovlm.flops import count_flops
from nanovlm.lab.costs import Savings, apart, costs_of, measured_alike
from nanovlm.lab.results import Result
from nanovlm.planning import check_lengths, plan
from nanovlm.training.launch import lay_out_steps, open_mixture


def test_costs_are_medians_over_the_runs():
    runs = [
        result(seed=0, samples_per_second=10.0, wall_seconds=5.0, peak_memory_bytes=100, skipped={"too long": 2}),
        result(seed=1, samples_per_second=70.0, wall_seconds=6.0, peak_memory_bytes=300),
        result(seed=2, samples_per_second=20.0, wall_seconds=9.0, peak_memory_bytes=101, skipped={"a": 2, "b": 3}),
    ]
    costs, notes = costs_of({"a": runs})
    found = costs["a"]
    assert (found.samples, found.samples_per_second, found.wall_seconds, found.peak_memory_bytes) == (100, 20, 6, 101)
    assert found.skipped_samples == 5
    assert notes == []


def test_the_model_is_sized_as_a_plan_sizes_it():
    costs, _ = costs_of({f"factor={factor}": [result(factor=factor)] for factor in (1, 2, 4)})
    for factor in (1, 2, 4):
        planned = plan(tiny_recipe(f"projector.factor={factor}"))
        found = costs[f"factor={factor}"]
        assert (found.parameters, found.image_tokens) == (planned.total_parameters, planned.image_tokens)


def test_flops_are_those_of_the_samples_that_were_trained_on(tmp_path):
    """Counted again, each sample in a row of its own, where nothing is filled up."""
    train(tiny_experiment(), tmp_path / "run")
    recipe = tiny_recipe("training.samples_per_step=1", "training.steps=24")
    model = check_lengths(recipe)
    steps, _ = lay_out_steps(recipe, model, open_mixture(recipe))
    counts = [count_flops(model, row) for task in steps.tasks() for row in steps[task].rows]
    assert len(counts) == 24
    costs, _ = costs_of({"run": [Result.open(tmp_path / "run")]})
    assert costs["run"].flops_per_sample == pytest.approx(sum(counts) / 24, rel=1e-6)


def changed(run: Result, **training) -> Result:
    return replace(run, experiment=run.experiment | {"training": run.experiment["training"] | training})


def test_frozen_components_cost_less():
    frozen = changed(result(), learning_rate={"projector": 1e-3, "vision_encoder": 0, "language_decoder": 0})
    costs, notes = costs_of({"whole": [result()], "frozen": [frozen]})
    assert costs["frozen"].flops_per_sample < 0.75 * costs["whole"].flops_per_sample
    assert costs["frozen"].parameters == costs["whole"].parameters
    assert notes == []


def test_a_component_that_thaws_on_the_way_counts_as_trained_and_is_told():
    until = {"projector": 0, "vision_encoder": 2, "language_decoder": 0}
    costs, notes = costs_of({"run": [result()], "thawing": [changed(result(), frozen_until_step=until)]})
    assert costs["thawing"] == costs["run"]
    assert notes == ["thawing: its vision_encoder was frozen up to step 2, and counts as trained from the first on"]


def test_without_its_plugin_a_model_is_not_sized_and_the_rest_stands():
    run = result()
    gone = replace(run, experiment=run.experiment | {"projector": {"name": "vanished"}})
    costs, notes = costs_of({"gone": [gone]})
    found = costs["gone"]
    assert (found.parameters, found.image_tokens, found.flops_per_sample) == (None, None, None)
    assert (found.samples, found.samples_per_second) == (100, 50)
    (note,) = notes
    assert note.startswith("gone: its parameters, image tokens and FLOPs are not known: projector: unknown")
    assert "'vanished'" in note


def test_what_an_old_summary_does_not_hold_is_not_known():
    run = result()
    for key in ("work", "peak_memory_bytes", "skipped"):
        del run.summary[key]
    found = costs_of({"old": [run, result(seed=1)]})[0]["old"]
    assert (found.flops_per_sample, found.peak_memory_bytes, found.skipped_samples) == (None, None, 0)
    assert found.parameters


def test_work_that_was_counted_in_other_words_is_not_known():
    for work in ({"images": 1, "tokens": 2, "squares": 3, "targets": 4}, {"images": 1}, None):
        found, notes = costs_of({"old": [result(work=work)]})
        assert (found["old"].flops_per_sample, found["old"].samples, notes) == (None, 100, [])


@pytest.mark.parametrize(
    ("other", "alike"),
    [
        (result(seed=1), True),
        (result(seed=1, precision="fp32"), False),
        (result(seed=1, ranks=2), False),
        (with_provenance(result(seed=1), hardware={"label": "one T4"}), False),
        (with_provenance(result(seed=1), hardware={}), False),
    ],
)
def test_speeds_count_only_where_they_were_measured_alike(other, alike):
    assert measured_alike([result(), other]) == alike


def test_speeds_that_nobody_can_place_do_not_count():
    assert not measured_alike([with_provenance(result(), hardware={})])


def test_savings_are_left_out_where_something_is_not_known():
    costs, _ = costs_of({"a": [result()], "b": [result(factor=4, samples_per_second=100.0)]})
    found = Savings.of(costs["b"], costs["a"], speeds=True)
    assert (found.speed, found.samples) == (2, 1)
    assert found.flops == pytest.approx(costs["b"].flops_per_sample / costs["a"].flops_per_sample)
    assert Savings.of(costs["b"], costs["a"], speeds=False).speed is None
    assert Savings.of(replace(costs["b"], flops_per_sample=None), costs["a"], speeds=True).flops is None


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [([30, 40], [10, 20], True), ([10, 20], [30, 40], True), ([10, 40], [20, 30], False), ([30], [10, None], False)],
)
def test_speeds_are_told_apart_only_where_every_run_of_one_was_faster(ours, theirs, told):
    """A machine that was busy with something else now and then must not make a verdict."""

    def runs(speeds):
        known = [{} if speed is None else {"samples_per_second": speed} for speed in speeds]
        return [Result(Path("run"), {}, {}, summary, {}) for summary in known]

    assert apart(runs(ours), runs(theirs)) == told
