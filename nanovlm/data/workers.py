"""The worker processes that prepare steps ahead of the trainer."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from nanovlm.data.loader import HeldOut, Step, Steps
from nanovlm.errors import DataError, NanoVLMError
from nanovlm.seeding import generator

COPIED = 2**22  # bytes of a tensor, at most


class _Portable:
    """Steps that survive the way into a spawned worker, which must first load the plugins given by path."""

    def __init__(self, steps: Steps | HeldOut, plugin_files: Sequence[str]) -> None:
        self.steps, self.plugin_files = steps, tuple(plugin_files)

    def __getitem__(self, task: Any) -> Step | DataError:
        """What the user can put right is returned: if it was raised, its message would be the worker's traceback.

        Always as a DataError: an exception of another class, or a plugin's, may not survive the way.
        """
        try:
            step = self.steps[task]
            return step.map(_for_the_way) if get_worker_info() else step
        except NanoVLMError as error:
            return DataError(str(error))

    def __len__(self) -> int:
        return len(self.steps)

    def __getstate__(self) -> dict[str, Any]:
        return {"plugin_files": self.plugin_files, "steps": pickle.dumps(self.steps)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from nanovlm.plugins import load_plugins

        load_plugins(state["plugin_files"])
        self.plugin_files, self.steps = state["plugin_files"], pickle.loads(state["steps"])


def load(
    steps: Steps | HeldOut, workers: int, pin_memory: bool = False, plugin_files: Sequence[str] = ()
) -> Generator[Step, None, None]:
    """The steps in order, prepared ahead by ``workers`` processes (0: in this one, when asked for).

    Raises DataError for a sample that cannot be read at all. Closed, it ends the reading ahead.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads of its own would not survive the fork
    tasks = steps.tasks()
    loader: DataLoader[Step | DataError] = DataLoader(
        _Portable(steps, plugin_files),  # type: ignore[arg-type]
        batch_size=None,
        sampler=tasks,  # iterated in this process: a stream has one reader
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_trainer,
        generator=generator("workers"),  # else it draws from the global one, and dropout would depend on it
    )
    return _good(iter(loader), tasks)  # the workers begin at once


def _for_the_way(tensor: Tensor) -> Any:
    """A worker shares a tensor's memory, which takes the trainer milliseconds to open: only large ones go so."""
    return tensor.numpy() if tensor.nbytes <= COPIED else tensor


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach all processes: the trainer ends its step first, and needs its data."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))  # only the first one


def _good(made: Iterator[Step | DataError], tasks: Iterable[Any]) -> Generator[Step, None, None]:
    try:
        for step in made:
            if isinstance(step, DataError):
                raise step
            yield step.map(torch.as_tensor)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a process that prepares data died ({str(error).partition(' exited')[0]}): the system may have ended it "
            "for want of memory; lower data.workers, or set data.workers=0 to see where it happens"
        ) from None
    finally:
        if isinstance(tasks, Generator):
            tasks.close()


def num_workers(choice: int | str) -> int:
    return min(8, (os.cpu_count() or 1) // 2) if choice == "auto" else int(choice)
