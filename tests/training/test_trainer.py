import json
import math
import re
from itertools import count

import pytest
import torch
from finished import same
from tiny import tiny_model, tiny_recipe

from nanovlm import ConfigError, DataError, Tracker, VisionLanguageModel
from nanovlm.cli.train import report
from nanovlm.data.mixture import is_held_out
from nanovlm.data.packing import pack_row
from nanovlm.errors import DivergedError
from nanovlm.flops import Cost
from nanovlm.training.launch import lay_out_steps, open_mixture
from nanovlm.training.run import fingerprint

ROLES = ("vision_encoder", "projector", "language_decoder")


def plain_losses(*overrides: str) -> list[float]:
    """The run once more in the plainest way: sample by sample, one loss and one unfused AdamW."""
    recipe = tiny_recipe(*overrides)
    experiment, config = recipe.experiment, recipe.experiment.training
    model = VisionLanguageModel(recipe.blueprint, experiment.seed)
    mixture = open_mixture(recipe)
    steps, _ = lay_out_steps(recipe, model, mixture)
    groups = [{"params": getattr(model, r).parameters(), "peak": getattr(config.learning_rate, r)} for r in ROLES]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=config.weight_decay.projector, foreach=False)
    losses = []
    for step in range(config.steps):
        progress = step / (config.steps - 1)  # without warm-up
        for group in adamw.param_groups:
            group["lr"] = group["peak"] * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)
        positions = range(step * config.samples_per_step, (step + 1) * config.samples_per_step)
        members = [mixture.at(position) for position in positions]
        rows = [pack_row([steps.prepare(mixture.datasets[d][i])], model.num_image_tokens) for d, i in members]
        losses.append(torch.cat([model.losses(row) for row in rows]).mean())
        losses[-1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        adamw.step()
        adamw.zero_grad()
    return [float(loss.detach()) for loss in losses]


@pytest.mark.parametrize("tokens_per_row", [84, 200, 8192])
def test_a_run_is_what_the_plainest_loop_does(run, tokens_per_row):
    overrides = ("training.steps=6", "training.warmup=0", f"training.tokens_per_row={tokens_per_row}")
    losses = run(*overrides).metric("loss")
    assert losses == pytest.approx(plain_losses(*overrides), rel=1e-4)
    assert losses[-1] < losses[0] - 0.3  # and it learns


def test_loss_and_gradient_do_not_depend_on_the_rows(run):
    narrow, wide = (run(f"training.tokens_per_row={tokens}", "training.steps=1") for tokens in (84, 8192))
    for name in ("loss", "grad_norm"):
        assert narrow.metric(name) == pytest.approx(wide.metric(name), rel=1e-5)


@pytest.mark.parametrize("role", ROLES)
def test_a_frozen_component_is_left_as_it_was(run, role):
    frozen = run(f"training.learning_rate.{role}=0")
    initial = frozen.provenance()["initial_weights"]
    model = VisionLanguageModel.from_pretrained(frozen.folder / "model")
    assert {name for name in ROLES if fingerprint(getattr(model, name)) == initial[name]} == {role}
    assert all(f"learning_rate/{role}" not in event for event in frozen.events("step"))


def test_the_model_that_is_saved_is_the_one_that_was_trained(trainer):
    trained = trainer()
    trained.train()
    saved = VisionLanguageModel.from_pretrained(trained.run.model)
    assert same(saved.state_dict(), trained.model.state_dict())
    assert not same(saved.state_dict(), tiny_model().state_dict())


@pytest.mark.parametrize(
    ("budget", "samples", "steps"),
    [("steps=3", 24, 3), ("samples=20", 20, 3), ("samples=24", 24, 3), ("epochs=1", 64, 8), ("epochs=0.3", 20, 3)],
)
def test_a_budget_is_kept_to_the_sample(run, budget, samples, steps):
    finished = run(f"training.{budget}")
    assert (finished.summary["samples"], finished.summary["steps"]) == (samples, steps)
    assert finished.metric("step") == list(range(1, steps + 1))
    assert finished.metric("samples")[-1] == samples


def test_a_budget_of_flops_buys_as_many_samples_as_it_pays_for(run):
    recipe = tiny_recipe("training.steps=8")  # all 64 samples, as often as each other
    with torch.device("meta"):
        planned = VisionLanguageModel(recipe.blueprint)
    model = VisionLanguageModel(recipe.blueprint, 0)
    steps, _ = lay_out_steps(recipe, model, open_mixture(recipe))
    whole = Cost.of(planned, ROLES).of_rows(row for n in range(8) for row in steps[n].rows)
    assert run(f"training.flops={whole / 2 * 1.001}").summary["samples"] == 32


def test_a_budget_that_pays_for_no_sample_is_refused(run):
    with pytest.raises(ConfigError, match=r"^training\.flops=1000: one sample costs about \d\.\de\+\d+; raise it$"):
        run("training.flops=1000")


def test_the_utilisation_of_a_known_gpu_is_told_with_each_step(trainer):
    some = trainer()
    some.clock.peak = 1e12
    some.trackers.trackers, told = [watching := Watching()], []
    watching.step_finished = told.append
    some.train()
    with torch.device("meta"):
        planned = VisionLanguageModel(some.model.blueprint)
    cost = Cost.of(planned, ROLES)
    steps = trainer().steps
    assert some.clock.flops == pytest.approx(cost.of_rows(row for step in steps for row in step.rows))
    assert len(told) == 3
    assert all(metrics["mfu"] > 0 for metrics in told)


def test_an_epoch_leaves_out_what_is_held_out(run):
    share = "data.validation.share=0.25"
    held_out = len(open_mixture(tiny_recipe(share)).held_out)
    assert 0 < held_out < 64
    assert run("training.epochs=1", share).summary["samples"] == 64 - held_out


def test_a_step_that_is_all_skipped_changes_no_weight(trainer, monkeypatch):
    some = trainer("training.steps=3")
    step = next(some.steps)
    monkeypatch.setattr(step, "rows", [])
    step.skipped["gone"] = 8
    some.steps = iter([step])
    before = {name: tensor.clone() for name, tensor in some.model.state_dict().items()}
    rates = some.optimizer.learning_rates
    metrics = some.train_step()
    assert same(some.model.state_dict(), before)
    assert some.optimizer.learning_rates != rates  # the schedule goes on
    assert "loss" not in metrics
    assert some.tally.skipped == {"gone": 8}


def test_a_run_goes_on_behind_a_step_that_is_all_skipped(run, faulty):
    faults = faulty(size=4, broken=[1, 2])
    overrides = ("training.epochs=2", "training.samples_per_step=1", faults["override"])
    finished = run(*overrides, plugin_files=faults["plugin_files"])
    assert finished.summary["skipped"] == {"odd one out": 2, "undecodable picture": 2}
    assert (finished.summary["steps"], finished.summary["samples"]) == (8, 4)
    assert len(finished.metric("step")) == 8
    assert len(finished.metric("loss")) == 4
    assert finished.metric("skipped")[-1] == 4


def test_a_run_in_which_all_is_skipped_names_the_reasons(run, faulty):
    faults = faulty(size=4, broken=[0, 1, 3])
    overrides = ("training.samples=3", "data.train.0.size=4", "training.samples_per_step=2", faults["override"])
    everything = [text.replace("[0, 1, 3]", "[0, 1, 2, 3]") for text in overrides]
    with pytest.raises(
        DataError, match=r"every sample was skipped: \d (odd one out|undecodable picture) \(first .*\), \d "
    ):
        run(*everything, plugin_files=faults["plugin_files"])


def test_skipped_samples_take_no_part_in_the_mean(run, faulty):
    """Sample 1 never teaches anything, whatever stands beside it in the same step."""
    both, alone = faulty(size=2, broken=[1]), faulty(size=1, broken=[])
    first = run("training.steps=3", "training.samples_per_step=2", both["override"], plugin_files=both["plugin_files"])
    second = run(
        "training.steps=3", "training.samples_per_step=1", alone["override"], plugin_files=both["plugin_files"]
    )
    assert first.metric("loss") == second.metric("loss")
    assert same(first.tensors(), second.tensors())


def test_metrics_are_logged_now_and_then_and_at_the_end(run):
    assert run("training.steps=5", "training.log_every=2").metric("step") == [2, 4, 5]


def test_learning_rates_are_logged_as_used(run):
    finished = run("training.steps=4", "training.warmup=0.5", "training.learning_rate.projector=0.01")
    assert finished.metric("learning_rate/projector") == pytest.approx([0.005, 0.01, 0.01, 0.001])


def test_the_best_model_is_the_one_of_the_lowest_validation_loss(run, monkeypatch):
    rates = [f"training.learning_rate.{role}=0.3" for role in ROLES]  # so high that it gets worse again
    validation = ("data.validation.share=0.2", "data.validation.every=1")
    finished = run("training.steps=6", "training.warmup=0.5", *validation, *rates)
    losses = {
        event["step"]: event["validation_loss"] for event in finished.events("evaluation") if "validation_loss" in event
    }
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    best = min(losses, key=losses.get)
    assert best < 6
    assert (finished.summary["best_step"], finished.summary["best_validation_loss"]) == (best, losses[best])
    assert finished.summary["validation_loss"] == losses[6]
    model = VisionLanguageModel.from_pretrained(finished.folder / "model-best")
    recipe = tiny_recipe(*validation)
    _, held_out = lay_out_steps(recipe, model, open_mixture(recipe))
    rows = [row for n in range(len(held_out)) for row in held_out[n].rows]
    with torch.no_grad():
        total = sum(float(model(row)) for row in rows) / sum(row.num_targets for row in rows)
    assert total == pytest.approx(losses[best], rel=1e-5)


def test_what_each_dataset_gave_and_its_own_validation_loss_are_told(run):
    one = "{name: shapes, train_size: %d, image_size: 16, weight: %s}"
    datasets = f"data.train=[{one % (24, 1)}, {one % (40, 0.5)}]"
    finished = run(datasets, "training.epochs=1", "data.validation={share: 0.2, every: 0}")
    given = {key: values for key, values in finished.events("step")[-1].items() if key.startswith("given/")}
    held_out = open_mixture(tiny_recipe(datasets, "data.validation={share: 0.2, every: 0}")).held_out
    left = [size - sum(d == place for d, _ in held_out) for place, size in enumerate((24, 40))]
    assert given == {"given/data.train.0": left[0], "given/data.train.1": round(left[1] / 2)}
    by_dataset = finished.summary["validation_loss_by_dataset"]
    assert by_dataset.keys() == {"data.train.0", "data.train.1"}
    assert min(by_dataset.values()) <= finished.summary["validation_loss"] <= max(by_dataset.values())
    told = finished.events("evaluation")[0]
    assert {f"validation_loss/{name}": loss for name, loss in by_dataset.items()}.items() <= told.items()
    words = ", ".join(f"{name} {loss:.3f}" for name, loss in by_dataset.items())
    assert f"validation loss: {words}" in report(finished.summary)


def test_without_held_out_samples_there_is_no_validation(run):
    finished = run("data.validation.share=1e-9", "data.validation.every=1")
    assert not (finished.folder / "model-best").exists()
    assert "validation_loss" not in finished.summary


def test_benchmarks_are_asked_when_due_and_at_the_end(run):
    finished = run("training.steps=5", "benchmarks.0.every=2", "benchmarks.0.limit=3")
    results = finished.events("evaluation")
    assert [event["step"] for event in results] == [2, 4, 5]
    assert [bool(event["controls"]) for event in results] == [False, False, True]
    assert sorted(path.name for path in (finished.folder / "evaluation" / "shapes").glob("*.jsonl")) == [
        "2.jsonl", "4.jsonl", "5.jsonl",
    ]  # fmt: skip
    assert finished.summary["benchmarks"]["shapes"]["questions"] == 3


def test_two_benchmarks_of_one_name_are_told_apart(run):
    one = "{name: shapes, test_size: %d, image_size: 16}"
    finished = run(f"benchmarks=[{one % 2}, {one % 3}]")
    assert {name: result["questions"] for name, result in finished.summary["benchmarks"].items()} == {
        "shapes": 2, "shapes-2": 3,
    }  # fmt: skip


def test_evaluating_on_the_way_changes_nothing(run):
    plain = run("data.validation.share=0.2")
    busy = run("data.validation.share=0.2", "data.validation.every=1", "benchmarks.0.every=1")
    assert busy.metric("loss") == plain.metric("loss")
    assert same(busy.tensors(), plain.tensors())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_the_same_and_keeps_its_weights_whole(run, precision):
    whole, half = (run("training.steps=5", f"training.precision={kind}") for kind in ("fp32", precision))
    assert half.summary["precision"] == precision
    assert half.metric("loss") != whole.metric("loss")
    assert half.metric("loss") == pytest.approx(whole.metric("loss"), rel=0.03)
    assert {tensor.dtype for tensor in half.tensors().values()} == {torch.float32}


def test_the_summary_is_what_is_on_disk(run):
    finished = run()
    on_disk = json.loads((finished.folder / "summary.json").read_text())
    assert finished.summary == on_disk | {"run": str(finished.folder)}


class Watching(Tracker):
    """Remembers the moments that it is told of; may fail at the end itself."""

    def __init__(self, fails: bool = False) -> None:
        self.moments, self.fails = [], fails

    def started(self, facts):
        self.moments.append("started")

    def step_finished(self, metrics):
        self.moments.append(metrics["step"])

    def evaluated(self, results, answered=()):
        self.moments.append((results.get("benchmark"), len(answered)))

    def finished(self, summary):
        self.moments.append("finished")

    def failed(self, error):
        self.moments.append(error)
        if self.fails:
            raise OSError("no more room")


def test_what_the_trainer_alone_needs_to_know_is_told_to_no_tracker(run):
    assert not any(key.startswith("_") for event in run().events("step") for key in event)


def test_trackers_are_told_of_every_moment_once(trainer):
    some = trainer("training.steps=2", "data.validation.share=0.2")
    some.trackers.trackers = [watching := Watching()]
    some.train()
    assert watching.moments == ["started", 1, 2, (None, 0), ("shapes", 8), "finished"]


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), KeyboardInterrupt()])
def test_trackers_are_told_of_a_failure_even_if_one_of_them_fails(trainer, monkeypatch, error):
    def crash(benchmark, step):
        raise error

    some = trainer("training.steps=2", "benchmarks.0.every=1")
    some.trackers.trackers = [first := Watching(fails=True), second := Watching()]
    monkeypatch.setattr(some.evaluations, "evaluate", crash)
    with pytest.raises(type(error)) as caught:
        some.train()
    assert caught.value is error
    assert first.moments == second.moments == ["started", 1, error]
    assert error.__notes__ == ["and the tracker Watching did not close: OSError('no more room')"]


def test_a_run_of_skipped_samples_ends_early(run, faulty, monkeypatch):
    monkeypatch.setattr("nanovlm.data.tally.HOPELESS", 6)
    faults = faulty(size=4, broken=[0, 1, 2, 3])
    overrides = ("training.steps=1000", "training.samples_per_step=2", faults["override"])
    with pytest.raises(
        DataError, match=r"^every sample was skipped: 3 odd one out \(first .*\), 3 undecodable picture \(first .*\)$"
    ):
        run(*overrides, plugin_files=faults["plugin_files"])


def test_held_out_samples_of_which_none_can_be_used_cost_no_run(run, faulty):
    held = [i for i in range(8) if is_held_out(f"faulty-{i}", 0.3, 0)]
    assert held
    faults = faulty(size=8, broken=held)
    finished = run(
        "training.steps=2", "data.validation.share=0.3", faults["override"], plugin_files=faults["plugin_files"]
    )
    assert "validation_loss" not in finished.summary
    assert sum(finished.summary["validation_skipped"].values()) == len(held)
    assert finished.summary["benchmarks"]["shapes"]["questions"] == 8
    text = "so that no sample was left"
    assert any(line.startswith("skipped in validation: ") and text in line for line in report(finished.summary))


@pytest.mark.parametrize("role", ROLES)
def test_a_frozen_component_keeps_still(trainer, role):
    some = trainer(f"training.learning_rate.{role}=0")
    some.train_step()
    modes = {name: getattr(some.model, name).training for name in ROLES}
    assert modes == {name: name != role for name in ROLES}


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_run_whose_loss_is_no_number_any_more_ends_and_says_what_is_left(run, log_every, monkeypatch):
    broken = VisionLanguageModel.losses

    def losses(model, row):
        return broken(model, row) * (math.nan if model.training else 1)

    monkeypatch.setattr(VisionLanguageModel, "losses", losses)
    overrides = ("training.steps=100", "data.validation.share=0.2", "data.validation.every=5", "benchmarks=[]")
    with pytest.raises(DivergedError) as caught:
        run(*overrides, f"training.log_every={log_every}")
    step = 10 if log_every == 1 else 12
    assert str(caught.value).startswith(
        f"step {step}: {step} updates in a row were lost, because the loss or its gradient"
    )
    assert "lower training.learning_rate, warm up for longer, or set training.max_grad_norm" in str(caught.value)
    assert re.search(r"\(the best model, of step \d+, is .*model-best\)$", str(caught.value))


def test_a_lost_update_is_counted_and_costs_no_run(run, monkeypatch):
    broken, steps = VisionLanguageModel.losses, count()

    def losses(model, row):
        return broken(model, row) * (math.inf if model.training and next(steps) == 1 else 1)

    monkeypatch.setattr(VisionLanguageModel, "losses", losses)
    finished = run("training.steps=4", "benchmarks=[]")
    assert finished.summary["lost_updates"] == 1
    assert finished.metric("lost_in_a_row") == [0, 1, 0, 0]
    assert [loss is None for loss in finished.metric("loss")] == [False, True, False, False]
    assert all(tensor.isfinite().all() for tensor in finished.tensors().values())
    assert "updates lost, because the loss or its gradient was no finite number: 1" in report(finished.summary)


@pytest.mark.parametrize(("share", "told"), [(0.38, True), (0.02, False)])
def test_a_run_that_waits_for_data_says_so(run, share, told):
    summary = run("training.steps=1").summary | {"data_wait": share}
    line = "waiting for data 38% of the time: raise data.workers, or make the pictures smaller before training"
    assert (line in report(summary)) == told
