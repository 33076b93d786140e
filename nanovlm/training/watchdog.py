"""A rank that hangs is found and named.

In a collective operation every rank waits for all others, so one that hangs stops the whole run without a word. Here
each rank tells in a store how far it has come, and a thread of it looks after the others once it has waited too long.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from nanovlm.data.ranks import Ranks
from nanovlm.errors import NanoVLMError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

POLL = 1.0  # seconds between two looks
SIGNS = 3  # looks after which a rank that has told nothing new gives no sign of life
GRACE = 3.0  # seconds in which the rank that was first to notice says so, before the others end, too
CLOSING = 30.0  # seconds that a rank that has failed takes at most to leave the others
FRAMES = 4  # of a rank's stack, the innermost


class RankError(NanoVLMError):
    """A run of several ranks that cannot go on, because one of them is gone, hangs, or does something else."""


@dataclass
class Wait:
    """One collective operation, from the moment this rank has come to it until all have.

    A GPU is still at ``work`` when the operation has ``returned``.
    """

    number: int
    doing: str
    since: float
    returned: bool = False
    work: dist.Work | None = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since

    @property
    def is_over(self) -> bool:
        return self.returned and (self.work is None or self.work.is_completed())


@dataclass(frozen=True)
class Beat:
    """What a rank tells of itself: the collective operation it has come to, its main thread's place, a sign of life."""

    number: int
    doing: str
    place: str
    sign: int


class Watchdog:
    """Ends this process, with a message that names who is to blame, if a ``waiting`` lasts ``timeout`` seconds."""

    def __init__(self, store: Store, ranks: Ranks, timeout: float) -> None:
        self.store = store.clone()  # what waits for the store in one thread must not hold up the other
        self.rank, self.world, self.timeout = ranks.rank, ranks.world, timeout
        self.interval = min(POLL, timeout / 10)
        self.wait = Wait(0, "the start", time.monotonic(), returned=True)
        self.main_thread, self.signs, self.stopped = threading.get_ident(), count(), threading.Event()
        self._tell()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join(GRACE)

    @contextmanager
    def waiting(self, doing: str) -> Iterator[Wait]:
        """Within the block this rank waits for the others, who are expected there too."""
        self.wait = wait = Wait(self.wait.number + 1, doing, time.monotonic())
        try:
            yield wait
        finally:
            wait.returned = True

    def lost(self, error: RuntimeError) -> str:
        """Why a collective operation failed, as far as that is known here."""
        self.stopped.wait(2 * self.interval)  # until everyone who is alive has told where he is
        late = late_ranks(self.wait, self.world, self.beats())
        what = f"{have(late)} not come to it" if late else "no rank is known to be behind"
        return (
            f"{self.wait.doing}: rank {self.rank} lost touch with another rank ({_line(error)}); {what}. What a rank "
            "said before it ended stands in its own output; `torchrun --max-restarts N` starts a run again by itself"
        )

    def beats(self) -> dict[int, Beat]:
        """What the ranks have told last; nothing of those that have not, or if the store is gone."""
        found = {}
        with suppress(RuntimeError):
            for rank in range(self.world):
                if self.store.check([str(rank)]):
                    found[rank] = Beat(**json.loads(self.store.get(str(rank))))
        return found

    def _watch(self) -> None:
        while not self.stopped.wait(self.interval):
            self._tell()
            if not (wait := self.wait).is_over and wait.seconds > self.timeout:
                self._end(wait)

    def _tell(self) -> None:
        beat = Beat(self.wait.number, self.wait.doing, place(self.main_thread), next(self.signs))
        with suppress(RuntimeError):  # the store is gone with the process that kept it
            self.store.set(str(self.rank), json.dumps(asdict(beat)))

    def _end(self, wait: Wait) -> None:
        before = self.beats()
        for _ in range(SIGNS):  # whoever is alive tells more in this time, this rank included
            time.sleep(self.interval)
            self._tell()
        now = self.beats()
        if wait.is_over:  # at the last moment
            return
        if self._is_first():
            alive = {rank for rank, beat in now.items() if rank not in before or beat.sign > before[rank].sign}
            print(f"nanovlm: {report(wait, self.world, now, alive)}", file=sys.stderr, flush=True)
        else:
            time.sleep(GRACE)
        os._exit(1)  # the main thread cannot be interrupted where it is

    def _is_first(self) -> bool:
        try:
            return bool(self.store.add("noticed", 1) == 1)
        except RuntimeError:
            return True


def late_ranks(wait: Wait, world: int, beats: Mapping[int, Beat]) -> list[int]:
    return [rank for rank in range(world) if rank not in beats or beats[rank].number < wait.number]


def report(wait: Wait, world: int, beats: Mapping[int, Beat], alive: Collection[int]) -> str:
    """Who has not come to ``wait``, where everyone is, and what may be done."""
    late = late_ranks(wait, world, beats)
    here = [rank for rank in range(world) if rank not in late]
    if late and here:
        waits = "waits" if len(here) == 1 else "wait"
        what = f"{have(late)} not come to {wait.doing} for {wait.seconds:.0f} s, while {listed(here)} {waits}"
        why = "its data may be slow (data.workers=0 shows where), or its GPU or machine be gone"
    else:
        what = f"all {world} ranks have come to {wait.doing}, and for {wait.seconds:.0f} s it has not ended"
        why = "a GPU or the network between the ranks may be at fault (NCCL_DEBUG=INFO says more)"
    where = [f"  rank {rank}: {_told(beats.get(rank), rank in alive)}" for rank in range(world)]
    fix = f"{why}; if it only needs longer, raise training.rank_timeout"
    return "\n".join([f"{what}.", *where, f"  {fix[0].upper()}{fix[1:]}."])


def _told(beat: Beat | None, alive: bool) -> str:
    if beat is None:
        return "has told nothing"
    now = "is" if alive else "gives no sign of life any more; it was"
    return f"has last come to {beat.doing}, and {now} in {beat.place}"


def place(thread: int) -> str:
    """The innermost functions that a thread is in, the innermost first."""
    frame = sys._current_frames().get(thread)
    stack = list(traceback.walk_stack(frame))[:FRAMES] if frame else []
    return " < ".join(f"{f.f_code.co_name} ({Path(f.f_code.co_filename).name}:{line})" for f, line in stack)


def listed(ranks: Collection[int]) -> str:
    """Ranks in words."""
    *others, last = map(str, ranks)
    return f"ranks {', '.join(others)} and {last}" if others else f"rank {last}"


def have(ranks: Collection[int]) -> str:
    return f"{listed(ranks)} {'has' if len(ranks) == 1 else 'have'}"


def _line(error: RuntimeError) -> str:
    """The first line of another library's message: what follows is its own stack."""
    return textwrap.shorten(str(error).strip().partition("\n")[0], 200, placeholder=" ...")


@contextmanager
def hurry(rank: int, error: BaseException | None) -> Iterator[None]:
    """After an error, leaving the others must not take long: they may wait for this rank, and it for them."""
    timer = threading.Timer(CLOSING, _give_up, (rank, error))
    timer.daemon = True
    if error:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up(rank: int, error: BaseException) -> None:
    what = f"{type(error).__name__}: {error}"
    print(f"nanovlm: rank {rank} could not leave the others after {what}", file=sys.stderr, flush=True)
    os._exit(1)
