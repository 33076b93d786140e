"""What torchrun tells a process, and what cannot be (whole runs that it starts: test_ranks.py)."""

import pytest
import torch

from nanovlm import ConfigError
from nanovlm.training.distributed import Group, RankError


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
