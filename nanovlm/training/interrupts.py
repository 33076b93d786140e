"""Ctrl-C and SIGTERM: a run ends between two steps, with a checkpoint, and says how to go on."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A run that was told to end did so; the message says how to go on with it."""


class Halt(Exception):
    """Raised where a run is told to end: caught where its checkpoint is written."""


class Interrupts:
    """Within the block, the first signal asks for an end: ``requested`` is its name. The second one ends at once."""

    def __init__(self) -> None:
        self.requested = ""
        self.at_once = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # signals reach no other
            self.before = {number: signal.signal(number, self.handle) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
        print(f"{self.requested}: the run ends after this step; once more ends it at once", file=sys.stderr, flush=True)
        if self.at_once:
            raise Halt

    @contextmanager
    def welcome(self, alone: bool) -> Iterator[None]:
        """Within the block nothing is lost by an end at once: raises Halt there, if no other process waits."""
        self.at_once = alone
        try:
            if alone and self.requested:
                raise Halt
            yield
        finally:
            self.at_once = False
