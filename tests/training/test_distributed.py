"""Several ranks against one process that has all of their rows."""

import os
import re
import signal
import subprocess
import sys
import time
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
from nanovlm.training.watchdog import Beat, Wait, report

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
        losses.append(float(group.sum_gradients(model.parameters(), loss, num_targets).loss))
        optimizer.step()
    return [*losses, float(optimizer.lost)], fingerprint(model)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("broken", [None, 1])
def test_the_ranks_stay_equal_and_learn_as_one_process_does(two, precision, broken):
    steps = [*STEPS.values()]
    (losses, weights), other = two(trained, steps, precision, broken)
    assert (losses, weights) == other  # bit for bit, whose gradient ever was no number
    expected, _ = trained(Group(torch.device("cpu")), steps, precision, broken)
    assert losses == pytest.approx(expected, abs=1e-5)
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
    group.barrier()
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
        group.barrier()
        group.agree("this", 4)
        assert not torch.distributed.is_initialized()


# --- when something goes wrong


def dying(group: Group) -> None:
    group.doing = "step 17"
    if group.ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    group.sum(torch.ones(1))


def test_a_rank_that_died_is_named():
    with Pool(2) as pool:
        pool.start(dying)
        with pytest.raises(RankError, match=r"step 17: rank 0 lost touch .* \(.+\); rank 1 has not come to it\."):
            pool.answer(0)
        assert (pool.status(0), pool.status(1)) == (0, -signal.SIGKILL)


def sleeping(group: Group, seconds: float) -> None:
    group.doing = "step 17"
    if group.ranks.rank == 1:
        time.sleep(seconds)
    group.sum(torch.ones(1))


def stopping(group: Group) -> None:
    group.doing = "step 17"
    if group.ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    group.sum(torch.ones(1))


@pytest.mark.parametrize(
    ("task", "where"),
    [
        ((sleeping, 60), r"has last come to the start, and is in sleeping \(test_distributed\.py:\d+\) < _serve"),
        ((stopping,), r"has last come to the start, and gives no sign of life any more; it was in \w+"),
    ],
    ids=["sleeping", "stopped"],
)
def test_a_rank_that_hangs_is_named_and_the_run_ends(tmp_path, task, where):
    with Pool(3, timeout=2, errors=tmp_path / "stderr") as pool:
        pool.start(*task)
        assert (pool.status(0), pool.status(2)) == (1, 1)
    said = (tmp_path / "stderr").read_text()
    assert re.match(r"nanovlm: rank 1 has not come to step 17 for \d+ s, while ranks 0 and 2 wait\.\n", said)
    assert re.search(rf"  rank 1: {where}", said)
    assert "  rank 0: has last come to step 17, and is in sum (distributed.py:" in said
    assert "data.workers=0 shows where" in said
    assert "raise training.rank_timeout." in said
    assert said.count("nanovlm:") == 1  # only one of those who wait speaks


def test_a_rank_that_is_only_slow_is_waited_for():
    with Pool(2, timeout=3) as pool:
        assert pool(sleeping, 1.5) == [None, None]


class Unfinished:
    """What a GPU is still at."""

    def is_completed(self) -> bool:
        return False


def launching(group: Group) -> None:
    """The host goes on, as with a GPU that never gets to the end of what it was given."""
    with group.watchdog.waiting("step 17") as wait:
        wait.work = Unfinished()
    time.sleep(60)


def test_an_operation_that_a_gpu_does_not_end_is_noticed_though_the_host_went_on(tmp_path):
    with Pool(2, timeout=1, errors=tmp_path / "stderr") as pool:
        pool.start(launching)
        assert (pool.status(0), pool.status(1)) == (1, 1)
    said = (tmp_path / "stderr").read_text()
    assert re.match(r"nanovlm: all 2 ranks have come to step 17, and for \d+ s it has not ended\.\n", said)
    assert "rank 1: has last come to step 17, and is in launching (" in said
    assert "  A GPU or the network between the ranks may be at fault (NCCL_DEBUG=INFO says more); if it only" in said


def test_a_rank_of_which_nothing_is_known_is_named():
    wait = Wait(3, "step 17", since=time.monotonic() - 600)
    told = report(wait, 4, {1: Beat(3, "step 17", "sum", 0), 3: Beat(2, "step 16", "read", 0)}, alive={1})
    first, *lines = told.split("\n")
    assert first == "ranks 0, 2 and 3 have not come to step 17 for 600 s, while rank 1 waits."
    assert lines[:4] == [
        "  rank 0: has told nothing",
        "  rank 1: has last come to step 17, and is in sum",
        "  rank 2: has told nothing",
        "  rank 3: has last come to step 16, and gives no sign of life any more; it was in read",
    ]


def closing_slowly(group: Group) -> None:
    from nanovlm.training import watchdog

    watchdog.CLOSING = 0.2
    torch.distributed.destroy_process_group = lambda: time.sleep(60)
    raise ConfigError("no such picture")


def test_a_rank_that_fails_does_not_wait_for_the_others_for_long(tmp_path):
    with Pool(2, errors=tmp_path / "stderr") as pool:
        pool.start(closing_slowly)
        assert (pool.status(0), pool.status(1)) == (1, 1)
    said = (tmp_path / "stderr").read_text()
    assert "nanovlm: rank 0 could not leave the others after ConfigError: no such picture" in said


@pytest.fixture
def torchrun_says(monkeypatch):
    def torchrun_says(**values: object) -> None:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return torchrun_says


ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}


@pytest.mark.parametrize("values", [{}, {"RANK": 0, "WORLD_SIZE": 1}, {"WORLD_SIZE": 1}, {"MASTER_ADDR": "node"}])
def test_without_torchrun_a_process_is_alone(torchrun_says, values):
    torchrun_says(**values)
    group = Group.from_environment("cpu")
    assert (type(group), group.ranks.rank, group.ranks.world, group.is_main) == (Group, 0, 1, True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"RANK": 0}, r"environment: RANK is set, .* but not WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start"),
        ({"RANK": 0, "WORLD_SIZE": 2}, r"RANK and WORLD_SIZE are set, .* unset RANK and WORLD_SIZE to train with one"),
        ({"RANK": 2, "WORLD_SIZE": 2, "LOCAL_RANK": 0} | ADDRESS, r"RANK='2', WORLD_SIZE='2', .* start .* `torchrun"),
        ({"RANK": "x", "WORLD_SIZE": 2, "LOCAL_RANK": 0} | ADDRESS, r"RANK='x', WORLD_SIZE='2', LOCAL_RANK='0' are no"),
    ],
)
def test_an_environment_that_cannot_be_is_refused(torchrun_says, values, message):
    torchrun_says(**values)
    with pytest.raises(ConfigError, match=message):
        Group.from_environment("cpu")


def test_each_process_needs_a_gpu_of_its_own(torchrun_says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    torchrun_says(RANK=1, WORLD_SIZE=3, LOCAL_RANK=1, **ADDRESS)
    assert Group.from_environment("cuda").device == torch.device("cuda", 1)
    torchrun_says(RANK=2, WORLD_SIZE=3, LOCAL_RANK=2, **ADDRESS)
    with pytest.raises(ConfigError, match=r"LOCAL_RANK=2: .* torch sees 2 here; .*--nproc-per-node 2 at most, or set"):
        Group.from_environment("auto")


def test_processes_do_not_share_an_mps_device(torchrun_says, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    torchrun_says(RANK=0, WORLD_SIZE=2, LOCAL_RANK=0, **ADDRESS)
    with pytest.raises(ConfigError, match=r"device='mps': several processes cannot share it; set device=cpu"):
        Group.from_environment("mps")


def test_a_rank_that_finds_no_others_says_so(torchrun_says):
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torchrun_says(
        RANK=1, WORLD_SIZE=2, LOCAL_RANK=0, MASTER_ADDR="127.0.0.1", MASTER_PORT=store.port,
        TORCHELASTIC_USE_AGENT_STORE=True,
    )  # fmt: skip
    with (
        pytest.raises(RankError, match=r"rank 1 of 2 did not meet the others at 127\.0\.0\.1:\d+ in 1 s .*every node"),
        Group.from_environment("cpu", timeout=1),
    ):
        pass
    assert not torch.distributed.is_initialized()


RESTARTED = """
import os, torch
from nanovlm.training.distributed import Group

def say(line):  # in one piece: the ranks share their output
    os.write(1, f"{line}\\n".encode())

with Group.from_environment("cpu", 60) as group:
    say(f"sum {group.sum(torch.tensor(group.ranks.rank + 1.0))}")
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and group.ranks.rank == 1:
        os._exit(7)
    group.barrier()
    say("passed")
"""


def test_torchrun_starts_a_run_again_whose_rank_died(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RESTARTED)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    done = subprocess.run([sys.executable, *command, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["passed"] * 2 + ["sum 3.0"] * 4


def modules_after(imports: str) -> set[str]:
    program = f"import sys, {imports}; print(*(name for name in sys.modules if name.startswith('torch.distributed')))"
    return set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.split())


def test_what_a_single_process_does_not_need_is_not_imported():
    """The compiler and varlen attention, which the model needs, bring most of ``torch.distributed`` along."""
    needed = modules_after("torch._dynamo, torch.utils.data, torch.nn.attention.varlen")
    imported = modules_after("nanovlm, nanovlm.training.distributed")
    assert "torch.distributed" in imported
    assert imported <= needed
