"""Several ranks against one process that has all of their rows."""

import math
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from processes import Pool
from test_synchronisation import Watching
from tiny import example, tiny_experiment, tiny_model

from nanovlm import ConfigError, Turn, VisionLanguageModel
from nanovlm.data.packing import PackedRow, pack
from nanovlm.training import distributed
from nanovlm.training.distributed import Group, RankError
from nanovlm.training.optimizer import Optimizer
from nanovlm.training.precision import Precision
from nanovlm.training.run import fingerprint

Share = list[tuple[str, int]]  # of a rank: the answers it learns, each with so many pictures
STEPS: dict[str, list[Share]] = {
    "normal": [[("yes", 1), ("no", 1)], [("a long answer", 2)]],
    "one has no picture": [[("yes", 1)], [("no", 0), ("never", 0)]],
    "none has a picture": [[("yes", 0)], [("no", 0)]],
    "one has no sample": [[("yes", 1), ("no", 0)], []],
    "one has more rows": [[("yes", 1)], [("no", 1), ("never", 1), ("a long answer", 1), ("maybe", 0)]],
}


@pytest.fixture(scope="module")
def two() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool
        assert pool.close() == [False, False]  # no process group is left


def together(shares: list[Share]) -> Share:
    return [sample for share in shares for sample in share]


def rows_of(model: VisionLanguageModel, share: Share) -> list[PackedRow]:
    examples = [example(model, [Turn("What?", answer)], n, seed=len(answer)) for answer, n in share]
    return pack(examples, model.num_image_tokens, tokens_per_row=40, images_per_row=2)


def train_on(model: VisionLanguageModel, share: Share, backward=torch.Tensor.backward) -> tuple[torch.Tensor, int]:
    """Gradients of this share's mean loss, as the trainer gathers them; the loss, and the number of targets."""
    rows = rows_of(model, share)
    num_targets, loss = sum(row.num_targets for row in rows), torch.zeros(())
    for row in rows:
        part = model(row) / num_targets
        backward(part)
        loss += part.detach()
    return loss, num_targets


def gradients(model: VisionLanguageModel) -> dict[str, torch.Tensor]:
    """By parameter; without those that are frozen."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def synchronised(group: Group, shares: list[Share], frozen: str = "", bucket: int = 5000) -> tuple:
    distributed.BUCKET = bucket
    model = tiny_model()
    if frozen:
        getattr(model, frozen).requires_grad_(False)
    loss, num_targets = train_on(model, shares[group.ranks.rank])
    totals = group.sum_gradients(model.parameters(), loss, num_targets, {"samples": len(shares[group.ranks.rank])})
    return totals.loss, totals.num_targets, totals.counts["samples"], gradients(model)


def alone(shares: list[Share], frozen: str = "") -> tuple:
    """One process, without anything of ``distributed``; a gradient that is missing is zero."""
    model = tiny_model()
    if frozen:
        getattr(model, frozen).requires_grad_(False)
    loss, num_targets = train_on(model, together(shares))
    found = gradients(model)
    everything = {n: found.get(n, torch.zeros_like(p)) for n, p in model.named_parameters() if p.requires_grad}
    return loss, num_targets, sum(map(len, shares)), everything


@pytest.mark.parametrize("bucket", [1, 5000, 10**9])
@pytest.mark.parametrize("shares", STEPS.values(), ids=STEPS)
def test_gradients_and_loss_are_those_of_one_process_with_all_rows(two, shares, bucket):
    expected = alone(shares)
    assert any(gradient.any() for gradient in expected[3].values())
    results = two(synchronised, shares, "", bucket)
    for result in results:
        torch.testing.assert_close(result[3], expected[3], rtol=1e-5, atol=1e-6)
        assert [float(x) for x in result[:3]] == pytest.approx([float(x) for x in expected[:3]], rel=1e-6)
    assert all(results[0][3][name].equal(results[1][3][name]) for name in expected[3])


def test_the_rows_of_these_steps_differ_as_they_should():
    model = tiny_model()
    rows = {name: [rows_of(model, share) for share in shares] for name, shares in STEPS.items()}
    assert [len(share) for share in rows["one has more rows"]] == [1, 4]
    assert [sum(row.num_images for row in share) for share in rows["one has no picture"]] == [1, 0]


def thawing(group: Group, shares: list[Share]) -> list[dict]:
    """A component that is frozen in the first step, and trained in the second."""
    model = tiny_model()
    steps = []
    for thawed in (False, True):
        model.vision_encoder.requires_grad_(thawed)
        model.zero_grad()
        group.sum_gradients(model.parameters(), *train_on(model, shares[group.ranks.rank]))
        steps.append(gradients(model))
    return steps


def test_a_component_that_is_trained_later_is_synchronised_then(two):
    shares = STEPS["one has no picture"]
    for frozen, trained in two(thawing, shares):
        torch.testing.assert_close(frozen, alone(shares, "vision_encoder")[3], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(trained, alone(shares)[3], rtol=1e-5, atol=1e-6)
        assert len(trained) > len(frozen) > 0


def test_a_step_without_any_sample_has_no_gradient_and_no_loss(two):
    for loss, num_targets, samples, found in two(synchronised, [[], []]):
        assert (loss.isnan(), num_targets, samples) == (True, 0, 0)
        assert len(found) == len(list(tiny_model().parameters()))
        assert not any(gradient.any() for gradient in found.values())


def trained(group: Group, steps: list[list[Share]], precision: str, broken: int | None) -> tuple[list[float], str]:
    """Losses, updates that were lost, and the weights; the last rank's gradient is no number in step ``broken``."""
    model = tiny_model()
    config = tiny_experiment("training.max_grad_norm=1", "training.warmup=0").training
    optimizer = Optimizer(model, config, len(steps), Precision(precision, torch.device("cpu")))
    losses = []
    for number, shares in enumerate(steps):
        share = shares[group.ranks.rank] if group.ranks.world > 1 else together(shares)
        loss, num_targets = train_on(model, share, optimizer.backward)
        if number == broken and group.ranks.rank == group.ranks.world - 1:
            next(model.language_decoder.parameters()).grad[0, 0] = torch.inf
        totals = group.sum_gradients(optimizer.trained, loss, num_targets)
        losses.append(float(totals.loss))
        optimizer.step(totals.num_targets)
    return [*losses, float(optimizer.lost)], fingerprint(model)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("broken", [None, 1])
def test_the_ranks_stay_equal_and_learn_as_one_process_does(two, precision, broken):
    steps = [*STEPS.values(), [[], []], STEPS["normal"]]
    (losses, weights), (other_losses, other_weights) = two(trained, steps, precision, broken)
    assert weights == other_weights  # bit for bit, whose gradient ever was no number
    assert losses == pytest.approx(other_losses, abs=0, rel=0, nan_ok=True)
    expected, _ = trained(Group(torch.device("cpu")), steps, precision, broken)
    assert losses == pytest.approx(expected, abs=1e-5, nan_ok=True)
    assert [math.isnan(loss) for loss in losses].index(True) == len(STEPS)  # where nobody had a sample
    assert losses[-1] == (0 if broken is None else 1)


def starved(group: Group) -> str:
    def no_room(tensors: list[torch.Tensor]) -> None:
        raise torch.OutOfMemoryError("no room for a bucket")

    distributed.torch.cat, cat = no_room, torch.cat
    try:
        group.sum_gradients([torch.nn.Parameter(torch.zeros(3))], torch.zeros(()), 1)
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        distributed.torch.cat = cat
    return ""


def test_an_error_about_memory_stays_one(two):
    assert two(starved) == ["OutOfMemoryError: no room for a bucket"] * 2


def layout(group: Group) -> tuple[tuple[int, ...], torch.Tensor]:
    parameter = torch.nn.Parameter(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last))
    parameter.grad = torch.arange(120.0).view(2, 3, 4, 5).to(memory_format=torch.channels_last)
    group.sum_gradients([parameter], torch.zeros(()), 2)
    return parameter.grad.stride(), parameter.grad


def test_a_gradient_keeps_its_layout_in_memory(two):
    for stride, gradient in two(layout):
        assert stride == (60, 1, 15, 3)
        assert gradient.equal(torch.arange(120.0).view(2, 3, 4, 5))


def watched(group: Group) -> list[str]:
    model = tiny_model()
    loss, num_targets = train_on(model, STEPS["normal"][group.ranks.rank])
    with Watching() as watching:
        group.sum_gradients(model.parameters(), loss, num_targets, {"samples": 2})
    assert watching.operations > 10
    return watching.found


def test_nothing_waits_for_the_device(two):
    assert two(watched) == [[], []]


def exchanged(group: Group) -> tuple:
    own = torch.tensor([group.ranks.rank + 1.0, 10.0])
    total = group.sum(own)
    return (
        total.tolist(), own.tolist(), group.gather("ab"[group.ranks.rank] * 3), group.broadcast(group.ranks.rank + 7),
        group.on_main(lambda: group.ranks.rank + 20), group.is_main,
    )  # fmt: skip


def test_what_the_ranks_tell_each_other(two):
    common = ["aaa", "bbb"], 7, 20
    assert two(exchanged) == [([3, 20], [1, 10], *common, True), ([3, 20], [2, 10], *common, False)]


@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_what_is_spread_comes_back_in_its_order_on_every_rank(two, size):
    assert two(squares, size) == [[i * i for i in range(size)]] * 2


def squares(group: Group, size: int) -> list[int]:
    return group.map(lambda i: i * i, range(size))


def disagreeing(group: Group, values: list[str]) -> str:
    try:
        group.agree("the initial weights", values[group.ranks.rank])
    except RankError as error:
        return str(error)
    return ""


def test_ranks_that_do_something_else_are_named(two):
    assert two(disagreeing, ["a", "a"]) == ["", ""]
    for said in two(disagreeing, ["a", "b"]):
        assert said.startswith("the initial weights: not the same on rank 1 as on rank 0; all ranks must run the same")


def refused(group: Group) -> str:
    def refuse() -> None:
        raise ConfigError("--run-dir here: the folder is not empty")

    try:
        group.on_main(refuse)
    except (ConfigError, RankError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_what_the_main_rank_cannot_do_stops_all(two):
    said = "--run-dir here: the folder is not empty"
    assert two(refused) == [f"ConfigError: {said}", f"RankError: rank 0: {said}"]


def test_a_process_that_is_alone_changes_nothing_and_starts_nothing():
    model, shares = tiny_model(), STEPS["normal"]
    with Group(torch.device("cpu")) as group:
        loss, num_targets = train_on(model, together(shares))
        totals = group.sum_gradients(model.parameters(), loss, num_targets, {"samples": 3})
        assert (totals.loss, totals.num_targets, totals.counts["samples"]) == (loss, num_targets, 3)
        assert all(gradients(model)[name].equal(gradient) for name, gradient in alone(shares)[3].items())
        assert group.map(lambda i: -i, [1, 2]) == [-1, -2]
        assert (group.gather(1), group.broadcast(2), group.on_main(lambda: 3)) == ([1], 2, 3)
        assert group.sum(loss) is loss
        group.agree("this", 4)
        assert not torch.distributed.is_initialized()


def modules_after(imports: str) -> set[str]:
    program = f"import sys, {imports}; print(*(name for name in sys.modules if name.startswith('torch.distributed')))"
    return set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.split())


def test_what_a_single_process_does_not_need_is_not_imported():
    """The compiler and varlen attention, which the model needs, bring most of ``torch.distributed`` along."""
    needed = modules_after("torch._dynamo, torch.utils.data, torch.nn.attention.varlen")
    imported = modules_after("nanovlm, nanovlm.training.distributed")
    assert "torch.distributed" in imported
    assert imported <= needed
