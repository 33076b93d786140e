"""The checks tell a tracker what the trainer tells it, and in a place of its own."""

import os
import re
import socket
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from tiny import tiny_recipe

from nanovlm.plugins import Registries
from nanovlm.testing import trackers
from nanovlm.testing.checks import bound_to, find
from nanovlm.testing.companions import Diary
from nanovlm.testing.surroundings import elsewhere
from nanovlm.training import launch
from nanovlm.training.run import Run
from nanovlm.training.trackers import Trackers

# A GPU of known speed; several datasets; a benchmark's own measure.
SOMETIMES = {"mfu", "validation_loss/data.train.0", "validation_loss/data.train.1", "answered"}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a real run tells."""
    folder = tmp_path_factory.mktemp("told")
    diary = Diary(Diary.Config(), Run(folder, "diary"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "open_trackers", lambda *_: Trackers([diary]))
        launch.train_recipe(tiny_recipe("data.validation.share=0.2", "benchmarks.0.every=2"), folder / "run")
    return keys_by_moment(diary.entries)


@pytest.fixture
def ours(tmp_path):
    run = Run(tmp_path, "check")
    moments = [*trackers.until_its_end(run), trackers.finished()]
    return keys_by_moment((moment.name, moment.given[0]) for moment in moments)


def keys_by_moment(entries):
    """The results of benchmarks apart from validation's."""
    keys = defaultdict(set)
    for moment, facts in entries:
        keys[moment, "benchmark" in facts] |= facts.keys()
    return keys


def test_the_checks_tell_nothing_that_a_run_does_not(told, ours):
    assert ours.keys() == told.keys()
    assert set().union(*(keys - told[moment] for moment, keys in ours.items())) == SOMETIMES


def test_the_checks_tell_all_that_a_run_does(told, ours):
    """Of a summary a few things: it is a file's content."""
    missing = {key for moment, keys in told.items() if moment[0] != "finished" for key in keys - ours[moment]}
    assert missing == {"learning_rate/vision_encoder", "learning_rate/language_decoder"}


def test_a_run_that_goes_on_begins_behind_its_checkpoint(tmp_path):
    assert [moment.given[0]["step"] for moment in trackers.steps(done=2)] == [3, 4]
    assert trackers.started(Run(tmp_path, "check"), done=2).given[0]["done_steps"] == 2


class KeepsFilesOpen(Diary):
    """Writes bytes on the screen, and into a file of its own until the end."""

    def started(self, facts):
        self.file = (self.run.folder / "losses.txt").open("a")
        sys.stdout.buffer.write(f"begins, in {sys.stdout.encoding}\n".encode())

    def step_finished(self, metrics):
        self.file.write(f"{metrics.get('loss')}\n")

    def finished(self, summary):
        self.file.close()

    def failed(self, error):
        if hasattr(self, "file"):
            self.file.close()


def test_a_sound_tracker_passes():
    outcomes = [bound.outcome() for bound in bound_to(find(KeepsFilesOpen, "tracker", Registries()))]
    assert {outcome.check.name: outcome.problem for outcome in outcomes if outcome.problem} == {}


def test_elsewhere_there_is_no_network_no_file_and_no_home():
    before = Path.cwd(), os.environ["HOME"]
    with elsewhere() as place:
        assert list(Path.cwd().iterdir()) == list(Path.home().iterdir()) == []
        with pytest.raises(OSError, match=re.escape("there is no network for checks: example.org")):
            socket.create_connection(("example.org", 80))
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname()).close()
        Path("a").write_text("")
        (Path.home() / "b").write_text("")
        assert (place.reached, place.written) == (["example.org"], ["./a", "~/b"])
    assert (Path.cwd(), os.environ["HOME"]) == before
