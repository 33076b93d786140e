"""Ranks that die, hang, stop or fail: who says what of whom, and with which status they end."""

import os
import re
import signal
import time

import pytest
import torch
from processes import Pool

from nanovlm import ConfigError
from nanovlm.training.distributed import Group
from nanovlm.training.watchdog import Beat, RankError, Wait, report


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
        ((sleeping, 60), r"has last come to the start, and is in sleeping \(test_watchdog\.py:\d+\) < _serve"),
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
