"""The ranks of a run as processes of this machine, as torchrun would start them: ``from processes import Pool``."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from nanovlm.training.distributed import Group

PATIENCE = 60  # seconds for an answer: the machine may be busy
HERE = get_context("forkserver")  # which imports torch once, for all pools of a session
HERE.set_forkserver_preload(["torch", "nanovlm"])


class Pool:
    """``pool(function, *arguments)`` is what ``function(group, *arguments)`` gives, or raises, on each of the ranks."""

    def __init__(self, world: int, timeout: float = PATIENCE, errors: Path | None = None) -> None:
        self.world = world
        self.store = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False
        )  # as torchrun's agent keeps it
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(world):
            here, there = HERE.Pipe()
            environment = {
                "RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": self.store.port, "TORCHELASTIC_USE_AGENT_STORE": True,
            }  # fmt: skip
            process = HERE.Process(target=_serve, args=(there, environment, timeout, errors), daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        self.start(function, *arguments)
        return [self.answer(rank) for rank in range(self.world)]

    def start(self, function: Callable[..., Any] | None, *arguments: Any) -> None:
        for pipe in self.pipes:
            with suppress(BrokenPipeError):  # the process is gone, which its answer will say
                pipe.send_bytes(pickle.dumps((function, arguments)))

    def answer(self, rank: int) -> Any:
        """Raises EOFError for a process that has ended."""
        assert self.pipes[rank].poll(PATIENCE), f"rank {rank} does not answer"
        result, error = pickle.loads(self.pipes[rank].recv_bytes())
        if error:
            raise error
        return result

    def close(self) -> list[Any]:
        """Let the ranks leave; whether each has a process group left."""
        self.start(None)
        return [self.answer(rank) for rank in range(self.world)]

    def status(self, rank: int) -> int | None:
        """With which a rank's process has ended."""
        self.processes[rank].join(PATIENCE)
        return self.processes[rank].exitcode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _serve(pipe: Connection, environment: dict[str, Any], timeout: float, errors: Path | None) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    if errors:
        sys.stderr = errors.open("a")
    try:
        with Group.from_environment("cpu", timeout) as group:
            while (task := pickle.loads(pipe.recv_bytes()))[0]:
                function, arguments = task
                outcome = function(group, *arguments)
                pipe.send_bytes(pickle.dumps((outcome, None)))
    except Exception as error:
        pipe.send_bytes(pickle.dumps((None, error)))
    else:
        pipe.send_bytes(pickle.dumps((dist.is_initialized(), None)))
