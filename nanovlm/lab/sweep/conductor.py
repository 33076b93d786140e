"""A sweep under way: what is not finished yet is started, watched, and told to end when the sweep is."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from nanovlm.files import remove, write_whole
from nanovlm.lab.ablation import Ablation
from nanovlm.lab.sweep.checks import asked_for, check_folder, check_idle, check_runs, other_code
from nanovlm.lab.sweep.jobs import Job, Processes, Runner
from nanovlm.lab.sweep.sweep import SPEAKER, STOPPED, RunState, Sweep, SweepRun
from nanovlm.plugins import Registries
from nanovlm.training.interrupts import Stopped
from nanovlm.yaml_reader import dump_yaml

POLL = 0.5  # seconds between two looks at what runs
ENDING = ("SIGINT", "SIGTERM", "SIGHUP")
Watch = Callable[[Sequence[RunState]], None]


def run_sweep(
    ablation: Ablation,
    folder: str | Path,
    registries: Registries,
    runner: Runner | None = None,
    watch: Watch | None = None,
) -> list[RunState]:
    """Train what of an ablation is not finished yet, each run in a process of its own; what became of all of them.

    runner: by default one after another. watch: told of all runs now and then, and at the end. Raises ConfigError,
    before anything starts, where ``folder`` holds something else, and Stopped where the sweep is told to end.
    """
    sweep = Sweep.of(ablation, Path(folder))
    check_folder(sweep)
    with sweep.locked():
        check_idle(sweep)
        sweep.take_over()
        check_runs(sweep, ablation, registries)
        if remark := other_code(sweep):
            print(remark, file=sys.stderr, flush=True)
        sweep.write()
        conductor = Conductor(sweep, ablation, runner or Processes(), registries.files, watch or (lambda states: None))
        conductor.conduct()
    found = list(conductor.states.values())
    done = sum(state.state == "done" for state in found)
    if conductor.told_to_end and done < len(found):
        raise Stopped(f"stopped with {done} of {len(found)} runs done")
    return found


def counted(states: Sequence[RunState]) -> str:
    """``4 runs: 2 done, 1 failed, 1 waiting``."""
    counts = Counter(state.state for state in states)
    return f"{len(states)} runs: " + ", ".join(f"{count} {state}" for state, count in counts.items())


class Conductor:
    """``states`` is what is known of each run; ``told_to_end``, whether a signal asked for that."""

    def __init__(
        self, sweep: Sweep, ablation: Ablation, runner: Runner, plugin_files: Sequence[str], watch: Watch
    ) -> None:
        self.ablation, self.runner, self.plugin_files, self.watch = ablation, runner, plugin_files, watch
        self.waiting = deque(run for run in sweep.runs if not run.is_done)
        self.states = {run: run.is_("done" if run.is_done else "waiting") for run in sweep.runs}
        self.running: dict[SweepRun, tuple[Job, int]] = {}
        self.free = list(range(runner.slots))
        self.signals: list[int] = []
        self.told_to_end = False

    def conduct(self) -> None:
        with self.listening():
            try:
                while self.running or (self.waiting and not self.told_to_end):
                    self.start()
                    self.show()
                    time.sleep(POLL)
                    self.pass_on()
                    self.reap()
            finally:
                self.end()
        for run in self.waiting:
            self.states[run] = run.ended()
        self.show()

    def start(self) -> None:
        while self.waiting and self.free and not self.told_to_end:
            run, slot = self.waiting.popleft(), self.free.pop(0)
            write_whole(run.experiment, dump_yaml(asked_for(self.ablation, run).model_dump()))
            self.running[run] = self.runner.start(self.arguments(run), run.log, slot), slot

    def arguments(self, run: SweepRun) -> list[str]:
        """Of nanovlm: to go on with the run, or to begin it."""
        plugins = [word for file in self.plugin_files for word in ("--plugin", str(file))]
        if run.has_checkpoint:
            return ["train", str(run.experiment), "--resume", str(run.folder), *plugins]
        if run.run.has_begun:  # nothing of it would be gone on with
            remove(run.folder)
        return ["train", str(run.experiment), "--run-dir", str(run.folder), *plugins]

    def reap(self) -> None:
        """See to the runs that have ended."""
        for run, (job, slot) in list(self.running.items()):
            if (status := job.status()) is not None:
                del self.running[run]
                self.free.append(slot)
                self.add_last_words(run, job, status)
                self.states[run] = run.ended()

    def add_last_words(self, run: SweepRun, job: Job, status: int) -> None:
        """Say in the log what a run could not say itself, so that the folder tells it all."""
        words = run.last_words()
        if run.is_done or (words and not self.told_to_end) or words.startswith(STOPPED):
            return
        said = (
            f"{STOPPED}: the sweep was told to end" if self.told_to_end else f"{SPEAKER}{job.reason or death(status)}"
        )
        with run.log.open("a", encoding="utf-8") as log:
            log.write(f"\n{said}\n")

    def show(self) -> None:
        for run, (job, _) in self.running.items():
            self.states[run] = run.is_("running" if job.begun else "waiting")
        self.watch(list(self.states.values()))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block, signals that ask for an end are kept until ``pass_on``."""
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # signals reach no other
            numbers = [getattr(signal, name) for name in ENDING]
            for number in (n for n in numbers if n == signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN):  # nohup
                before[number] = signal.signal(number, self.hear)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def hear(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)
        self.told_to_end = True

    def pass_on(self) -> None:
        """Each signal once to each run that is under way."""
        while self.signals:
            number = self.signals.pop(0)
            name = signal.Signals(number).name
            print(
                f"{name}: the runs end after their step, with a checkpoint; once more ends them at once",
                file=sys.stderr,
                flush=True,
            )
            self.tell(signal.SIGTERM if name == "SIGHUP" else number)  # runs do not listen to that one

    def tell(self, number: int) -> None:
        for job, _ in self.running.values():
            job.tell(number)

    def end(self) -> None:
        """Leave no run behind, whatever went wrong here."""
        if self.running:
            self.told_to_end = True
            self.tell(signal.SIGTERM)
        while self.running:
            time.sleep(POLL)
            self.pass_on()
            self.reap()


def death(status: int) -> str:
    """Why a process may have ended without a word."""
    if status == -signal.SIGKILL:
        return "killed by SIGKILL: was there too little memory?"
    if status in (-signal.SIGTERM, -signal.SIGINT):
        return f"stopped by {signal.Signals(-status).name}"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"ended with status {status}, without a summary and without a word"
