"""An empty place to run a component in, and what it did there: files, connections, random numbers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from nanovlm.testing.checks import Violation
from nanovlm.testing.models import few, random_states

HOMES = ("HOME", "USERPROFILE")  # where libraries look for a user's files
OF_A_HOME = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
LOCAL = ("127.0.0.1", "::1", "localhost", "")


class Surroundings:
    """A folder that is deleted again: within it the working directory and the user's home are empty ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work, self.home = folder / "work", folder / "home"
        self.reached: list[str] = []
        """The hosts that somebody tried to reach."""

    @property
    def written(self) -> list[str]:
        """What was left in the working directory and in the home."""
        return [
            f"{name}/{file.relative_to(place).as_posix()}"
            for name, place in ((".", self.work), ("~", self.home))
            for file in sorted(place.rglob("*"))
            if not file.is_dir()
        ]


@contextmanager
def elsewhere() -> Iterator[Surroundings]:
    """Within the block the working directory and the user's home are new and empty, and there is no network."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place = Surroundings(Path(folder).resolve())
        place.work.mkdir()
        place.home.mkdir()
        environment = dict.fromkeys(HOMES, str(place.home)) | {name: str(place.home / name) for name in OF_A_HOME}
        with chdir(place.work), mock.patch.dict(os.environ, environment), _without_network(place.reached):
            yield place


@contextmanager
def _without_network(reached: list[str]) -> Iterator[None]:
    """Within the block nothing beyond this machine can be reached; who was tried to is noted."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def refuse(host: str) -> None:
        reached.append(host)
        raise OSError(f"there is no network for checks: {host}")

    def local_connect(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in LOCAL:  # else the path of a local socket
            refuse(str(address[0]))
        connect(self, address)

    def local_look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host or ""
        if name not in LOCAL:
            refuse(name)
        return look_up(host, *arguments, **options)

    with mock.patch.object(socket.socket, "connect", local_connect), mock.patch("socket.getaddrinfo", local_look_up):
        yield


@contextmanager
def randomness_untouched(when: str) -> Iterator[None]:
    """Violation where something draws from the global generators within the block, or seeds them."""
    before = random_states()
    yield
    after = random_states()
    if changed := [name for name in before if before[name] != after[name]]:
        raise Violation(
            f"changes the global random state of {few(changed)} {when}: draw from a generator of its own, such as "
            "random.Random(seed)"
        )
