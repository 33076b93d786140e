"""How a sweep's runs are started: as processes of this machine, or as jobs of a cluster (submitit)."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from nanovlm.errors import ConfigError, summary
from nanovlm.yaml_reader import parse_yaml

NANOVLM = (sys.executable, "-m", "nanovlm")
GPUS = "CUDA_VISIBLE_DEVICES"
THREADS = "OMP_NUM_THREADS"
TIME_LIMIT = "timeout_min"
NO_LIMIT = 60 * 24 * 365  # minutes; submitit has to be told some number
SIGNAL_TO_END = "SIGUSR2"  # which submitit asks a cluster to send some time before a job's end


class Job(Protocol):
    """A run that was started."""

    reason: str
    """Why it ended, where its log cannot say so; else empty."""

    @property
    def begun(self) -> bool:
        """Whether it has left the queue."""

    def status(self) -> int | None:
        """With which it ended, a signal's number being negative; None until then."""

    def tell(self, number: int) -> None:
        """Send it one signal."""


class Runner(Protocol):
    """Starts runs, of which as many as it has ``slots`` may be under way at once."""

    slots: int

    def start(self, arguments: Sequence[str], log: Path, slot: int) -> Job:
        """``nanovlm ARGUMENTS``; all that it prints is added to ``log``. Raises ConfigError where nothing starts."""


class Processes:
    """Processes of this machine, one for each of the ``environments`` at once.

    program: what understands nanovlm's arguments.
    """

    def __init__(self, environments: Sequence[Mapping[str, str]] = ({},), program: Sequence[str] = NANOVLM) -> None:
        self.environments, self.program = environments, program
        self.slots = len(environments)

    def start(self, arguments: Sequence[str], log: Path, slot: int) -> Process:
        return Process(begin([*self.program, *arguments], log, self.environments[slot]))


class Process:
    reason = ""
    begun = True

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def status(self) -> int | None:
        return self.process.poll()

    def tell(self, number: int) -> None:
        self.process.send_signal(number)


def begin(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A process in a session of its own: a terminal's Ctrl-C does not reach it, so that it hears of one once only."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"$ {shlex.join(command)}\n".encode())
        output.flush()
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},  # a log is read while it is written
            start_new_session=True,
        )


def environments(jobs: int, device: str) -> list[dict[str, str]]:
    """What each of so many runs side by side gets of this machine: a GPU of its own, or its share of the processors.

    Neither changes what a run computes (but for the last bits of a sum), only how fast. Raises ConfigError where there
    are not enough GPUs.
    """
    if jobs == 1:
        return [{}]
    if device == "cpu":
        return [{THREADS: str(max(1, torch.get_num_threads() // jobs))}] * jobs
    gpus = visible_gpus() if device == "cuda" else ["0"]
    if jobs > len(gpus):
        listed = f" ({GPUS}={os.environ[GPUS]})" if GPUS in os.environ else ""
        here = f"there are {len(gpus)}" if len(gpus) > 1 else "there is one"
        raise ConfigError(
            f"--jobs {jobs}: each run takes a GPU of its own, and {here} here{listed}; use --jobs {max(1, len(gpus))}"
        )
    return [{GPUS: gpu} for gpu in gpus[:jobs]]


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them: by number, or by UUID."""
    count = torch.cuda.device_count()
    named = os.environ.get(GPUS)
    return [gpu.strip() for gpu in named.split(",")][:count] if named else [str(gpu) for gpu in range(count)]


class Submitit:
    """Jobs of a cluster, or of its stand-in ``local``; what submitit writes is in ``folder``.

    options: of submitit's ``AutoExecutor.update_parameters``.
    """

    def __init__(
        self,
        cluster: str,
        folder: Path,
        options: Mapping[str, Any],
        slots: int,
        program: Sequence[str] = NANOVLM,
    ) -> None:
        self.cluster, self.folder, self.slots, self.program = cluster, folder, slots, program
        if cluster == "local":
            options = {TIME_LIMIT: NO_LIMIT, **options}
        elif not options.keys() & {TIME_LIMIT, "slurm_time"}:
            raise ConfigError(
                f"--submit {cluster}: how many minutes may a run take? Say so by --submit-option {TIME_LIMIT}=240; "
                "one that takes longer stops with a checkpoint, and the same command goes on with it"
            )
        self.options = options
        try:
            import submitit  # noqa: F401 - asked before anything is written
        except ImportError as error:
            fix = 'pip install "nanovlm[submitit]"'
            raise ConfigError(f"--submit needs the library submitit ({error}): {fix}") from None

    @cached_property
    def executor(self) -> Any:
        """Made when the first job is handed over: it makes its folder."""
        import submitit

        try:
            executor = submitit.AutoExecutor(self.folder, cluster=self.cluster)
        except RuntimeError as error:
            raise ConfigError(f"--submit {self.cluster}: {summary(error)}") from None
        try:
            executor.update_parameters(**self.options)
        except (NameError, ValueError, AssertionError) as error:
            raise ConfigError(f"--submit-option: {error}") from None
        return executor

    def start(self, arguments: Sequence[str], log: Path, slot: int) -> Submitted:
        executor = self.executor
        try:
            with _deaf_to_the_terminal():
                job = executor.submit(Remote([*self.program, *arguments], log))
        except Exception as error:  # whatever the cluster's own command says
            raise ConfigError(f"--submit {self.cluster}: the job was not taken: {summary(error)}") from None
        return Submitted(job, local=self.cluster == "local")


class Submitted:
    """A job that was handed to a cluster."""

    def __init__(self, job: Any, local: bool) -> None:
        self.job, self.local, self.reason = job, local, ""

    @property
    def begun(self) -> bool:
        return bool(self.job.state == "RUNNING")

    def status(self) -> int | None:
        if not self.job.done():
            return None
        if error := self.job.exception():  # killed, out of time, or never begun
            self.reason = summary(error)
            return 1
        return int(self.job.result())

    def tell(self, number: int) -> None:
        """A cluster cancels a job by SIGTERM; submitit's own local ``cancel`` would leave no time for a checkpoint."""
        if self.local:
            os.kill(int(self.job.job_id), signal.SIGTERM)
        else:
            self.job.cancel(check=False)


@dataclass(frozen=True)
class Remote:
    """What a job does: one run, which it tells to end where the job is to. Its exit status."""

    command: list[str]
    log: Path

    def __call__(self) -> int:
        process: subprocess.Popen[bytes] | None = None
        early: list[int] = []

        def pass_on(number: int, frame: FrameType | None) -> None:
            if process:
                process.send_signal(signal.SIGTERM)
            else:
                early.append(number)

        for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, SIGNAL_TO_END)):
            signal.signal(number, pass_on)  # submitit's own handlers would queue the job again, or do nothing
        process = begin(self.command, self.log, {})
        if early:
            process.send_signal(signal.SIGTERM)
        return process.wait()


@contextmanager
def _deaf_to_the_terminal() -> Iterator[None]:
    """Processes started within never hear of Ctrl-C: submitit's local ones would end at once, without a checkpoint."""
    if threading.current_thread() is not threading.main_thread():  # only that one may say what a signal does
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def submit_options(texts: Sequence[str]) -> dict[str, Any]:
    """``key=value`` by key."""
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError(f"--submit-option {text}: expected key=value, for example {TIME_LIMIT}=240")
        options[key] = parse_yaml(value, f"--submit-option {text}")
    return options
