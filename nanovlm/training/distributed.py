"""One training run on several processes, its ranks: what they have to do together.

Each rank has all of the model, takes its share of every step, and makes the same update. Gradients are summed once a
step, after its last row, a missing one counting as zero: so it does not matter whose rows have pictures, who has how
many rows, who has none at all, or from which step on a component is trained.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanovlm.data.ranks import ALONE, Ranks
from nanovlm.errors import NanoVLMError, summary
from nanovlm.training.memory import ran_out
from nanovlm.training.precision import choose_device
from nanovlm.training.torchrun import START, numbers, own_device
from nanovlm.training.watchdog import RankError, Wait, Watchdog, hurry, listed

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

BUCKET = 8 * 2**20  # gradients that are summed in one operation: 32 MiB
IN_FLIGHT = 2  # buckets on their way at once: one is packed while another is sent

T = TypeVar("T")
R = TypeVar("R")


class Totals(NamedTuple):
    """Of a step, over all ranks. The loss is the mean over the targets: no number if there were none."""

    loss: Tensor
    num_targets: Tensor
    counts: dict[str, Tensor]


class Group:
    """The processes of a run, and which of them this one is: here, the only one, which waits for nobody.

    doing: what is under way, for messages.
    """

    def __init__(self, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.device, self.ranks = device, ranks
        self.doing = "the start"

    @staticmethod
    def from_environment(device: str, timeout: float = 600) -> Group:
        """As ``torchrun`` has set the environment, or else a single process; each rank has its own GPU.

        timeout: how many seconds a rank may wait for another one. Raises ConfigError.
        """
        told = numbers()
        if told is None:
            return Group(choose_device(device))
        rank, world, local_rank = told
        return ProcessGroup(own_device(device, local_rank), Ranks(rank, world), timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        pass

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.ranks.rank == 0

    def sum_gradients(
        self,
        parameters: Iterable[nn.Parameter],
        loss: Tensor,
        num_targets: int,
        counts: Mapping[str, float] | None = None,
    ) -> Totals:
        """From each rank's own mean over its targets to the mean over those of all: the gradients, and the ``loss``.

        What is summed are the gradients of the parameters that are trained now, whether this rank has one or not.
        ``counts`` are summed on the way. The device is not waited for.
        """
        _fill_missing(parameters)
        totals = {name: loss.new_full((), value) for name, value in (counts or {}).items()}
        loss = loss.detach() if num_targets else loss.new_full((), math.nan)
        return Totals(loss, loss.new_full((), num_targets), totals)

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        return [value]

    def broadcast(self, value: T) -> T:
        """The first rank's value, on every rank."""
        return value

    def on_main(self, function: Callable[[], T]) -> T:
        """What ``function`` gives on the first rank, on every rank; where it fails, all fail."""
        return function()

    def collect(self, results: Iterable[R]) -> list[R]:
        """Every rank's results for its share (``Ranks.share``), in the order of what was shared, on every rank."""
        return [result for share in self.gather(list(results)) for result in share]

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """``function`` of every item, computed once each by some rank, on every rank."""
        return self.collect(function(item) for item in self.ranks.share(items))

    def agree(self, what: str, value: object) -> None:
        """Raises RankError where the ranks' values differ."""
        values = self.gather(value)
        if others := [rank for rank, other in enumerate(values) if other != values[0]]:
            raise RankError(
                f"{what}: not the same on {listed(others)} as on rank 0; all ranks must run the same code, with the "
                "same options, on the same files"
            )


class ProcessGroup(Group):
    """Several processes, by ``torch.distributed``; entered, they have met, and left, nothing of it remains."""

    def __init__(self, device: torch.device, ranks: Ranks, timeout: float) -> None:
        super().__init__(device, ranks)
        self.timeout = timeout

    def __enter__(self) -> Self:
        try:
            self.watchdog = Watchdog(self._meet(), self.ranks, self.timeout)
        except (RuntimeError, ValueError) as error:
            address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise RankError(
                f"rank {self.ranks.rank} of {self.ranks.world} did not meet the others at {address} in "
                f"{self.timeout:.0f} s ({summary(error)}); every node must start its part ({START}), and reach that "
                "address"
            ) from None
        return self

    def _meet(self) -> Store:
        """The group of all ranks, and a store that they share."""
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        on_gpu, patience = self.device.type == "cuda", timedelta(seconds=self.timeout)
        if on_gpu:
            torch.cuda.set_device(self.device)
        shared, _, _ = next(rendezvous("env://", timeout=patience))
        store = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", shared)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=PrefixStore("group", store),
            rank=self.ranks.rank,
            world_size=self.ranks.world,
            timeout=2 * patience,  # the watchdog, which knows more, comes first
            device_id=self.device if on_gpu else None,
        )
        return PrefixStore("watchdog", store)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        with hurry(self.ranks.rank, error):
            dist.destroy_process_group()
        self.watchdog.stop()

    def sum_gradients(
        self,
        parameters: Iterable[nn.Parameter],
        loss: Tensor,
        num_targets: int,
        counts: Mapping[str, float] | None = None,
    ) -> Totals:
        trained, loss, counts = _fill_missing(parameters), loss.detach().float(), counts or {}
        own = [loss * num_targets, *(loss.new_full((), n) for n in (num_targets, *counts.values()))]
        totals = torch.stack(own)  # filled in on the device: copying numbers to it would wait for it
        with self._together() as wait:
            self._sum(totals).wait()
            divisor = totals[1].clamp(min=1)  # without any target all gradients are zero
            flying: deque[_Bucket] = deque()
            for members in _buckets(trained):
                flying.append(bucket := self._send(members, num_targets))
                wait.work = bucket.work
                if len(flying) > IN_FLIGHT:
                    flying.popleft().land(divisor)
            while flying:
                flying.popleft().land(divisor)
        return Totals(totals[0] / totals[1], totals[1], dict(zip(counts, totals[2:], strict=True)))

    def _send(self, members: list[nn.Parameter], num_targets: int) -> _Bucket:
        gradients = [parameter.grad for parameter in members if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]).float().mul_(num_targets)
        return _Bucket(gradients, flat, self._sum(flat))

    def _sum(self, tensor: Tensor) -> dist.Work:
        """In place, once the work has been waited for."""
        work = dist.all_reduce(tensor, async_op=True)
        assert work is not None  # only for a process outside of the group
        return work

    def sum(self, tensor: Tensor) -> Tensor:
        with self._together() as wait:
            total = tensor.to(self.device, copy=True)
            wait.work = self._sum(total)
            wait.work.wait()
        return total

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.ranks.world
        with self._together():
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        box: list[Any] = [value]
        with self._together():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def on_main(self, function: Callable[[], T]) -> T:
        outcome: tuple[Any, str] = None, ""
        try:
            if self.is_main:
                outcome = function(), ""
        except NanoVLMError as error:
            self.broadcast((None, str(error)))  # as text: a plugin's own exception may not survive the way
            raise
        value, failure = self.broadcast(outcome)
        if failure:
            raise RankError(f"rank 0: {failure}")
        return value

    @contextmanager
    def _together(self) -> Iterator[Wait]:
        """All ranks come here, or it is known who does not."""
        with self.watchdog.waiting(self.doing) as wait:
            try:
                yield wait
            except RuntimeError as error:  # the errors of torch.distributed have no class of their own
                if ran_out(error):
                    raise
                raise RankError(self.watchdog.lost(error)) from None


class _Bucket(NamedTuple):
    """Some gradients, laid end to end on their way to the other ranks."""

    gradients: list[Tensor]
    flat: Tensor
    work: dist.Work

    def land(self, divisor: Tensor) -> None:
        self.work.wait()
        parts = self.flat.div_(divisor).split([gradient.numel() for gradient in self.gradients])
        torch._foreach_copy_(
            self.gradients, [part.view(g.shape) for part, g in zip(parts, self.gradients, strict=True)]
        )


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The parameters in their order, as many together as BUCKET allows, but at least one."""
    members: list[nn.Parameter] = []
    for parameter in parameters:
        if members and sum(member.numel() for member in members) + parameter.numel() > BUCKET:
            yield members
            members = []
        members.append(parameter)
    if members:
        yield members


def _fill_missing(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters that are trained now, each with a gradient: zero where no row of this rank needed it."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return trained
