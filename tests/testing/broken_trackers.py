"""Trackers that break one promise each: the sound companion with one small change."""

import os
import random
import socket
import sys
import threading
from contextlib import suppress
from io import StringIO
from pathlib import Path

from nanovlm import ComponentConfig
from nanovlm.testing.companions import Diary


class NoTracker:
    class Config(ComponentConfig):
        pass

    def __init__(self, config, run):
        self.run = run


class NoRun(Diary):
    def __init__(self, config, run):
        self.entries = []


class TakesNoRun(Diary):
    def __init__(self, config):
        self.entries = []


class WantsALoss(Diary):
    def step_finished(self, metrics):
        super().step_finished({"loss": metrics["loss"]})


class WantsAnAccuracy(Diary):
    def evaluated(self, results, answered=()):
        super().evaluated({"accuracy": results["accuracy"]}, answered)


class ForFilesOnly(Diary):
    def started(self, facts):
        super().started(facts)
        if sys.stdout.isatty():
            raise OSError("no colours here")


class WantsAnException(Diary):
    def failed(self, error):
        if not isinstance(error, Exception):
            raise TypeError("no exception")


class ClosesUnopened(Diary):
    def started(self, facts):
        self.log = StringIO()

    def failed(self, error):
        self.log.close()


class KeepsTheTerminal(Diary):
    """Gives it back at the end, but not where the run fails."""

    def started(self, facts):
        self.before, sys.stdout = sys.stdout, StringIO()

    def finished(self, summary):
        sys.stdout = self.before


class WalksAway(Diary):
    def started(self, facts):
        os.chdir(self.run.folder)


class LeavesAThread(Diary):
    def started(self, facts):
        threading.Timer(1.0, print).start()


class OneOfAKind(Diary):
    told = 0

    def started(self, facts):
        if OneOfAKind.told:
            raise RuntimeError("there is one already")
        OneOfAKind.told = 1

    def finished(self, summary):
        OneOfAKind.told = 0


class NewFolderOnly(Diary):
    def started(self, facts):
        (self.run.folder / "diary").mkdir()


class WritesHere(Diary):
    def finished(self, summary):
        Path("diary.txt").write_text("The end.")


class WritesAtHome(Diary):
    def finished(self, summary):
        (Path.home() / ".diary").write_text("The end.")


class WritesBesideTheRun(Diary):
    def finished(self, summary):
        (self.run.folder.parent / "diary.txt").write_text("The end.")


class WritesIntoTheExperiment(Diary):
    def finished(self, summary):
        self.run.experiment.write_text("name: mine")


class CallsHome(Diary):
    def finished(self, summary):
        with suppress(OSError):
            socket.create_connection(("192.0.2.1", 443))


class TakesOutTheStep(Diary):
    def step_finished(self, metrics):
        super().step_finished({"step": metrics.pop("step")})


class ShrinksPictures(Diary):
    def evaluated(self, results, answered=()):
        for sample, _ in answered:
            for image in sample.images:
                if not isinstance(image, bytes):
                    image.thumbnail((64, 64))


class DrawsAName(Diary):
    def started(self, facts):
        super().started({"name": random.random()})


KIND = "tracker"
BROKEN: dict[str, list[tuple[str, type | str, str]]] = {
    "is a tracker of its run": [
        (KIND, NoTracker, "is no Tracker: derive it from nanovlm.Tracker, so that moments it leaves out are there"),
        (KIND, NoRun, "does not know its run: call super().__init__(config, run)"),
        (KIND, TakesNoRun, "fails to be built for a run, with its config and the run: TypeError"),
    ],
    "can be told every moment": [
        (KIND, WantsALoss, "fails when it is told that a run has finished a step: KeyError: 'loss'"),
        (KIND, WantsAnAccuracy, "fails when it is told that a run was evaluated: KeyError: 'accuracy'"),
        (KIND, ForFilesOnly, "fails when it is told that a run has started: OSError: no colours here"),
    ],
    "can be told of a failure": [
        (KIND, WantsAnException, "fails when it is told that a run has failed: TypeError: no exception"),
        (KIND, ClosesUnopened, "fails when it is told that a run has failed: AttributeError"),
    ],
    "closes behind itself": [
        (KIND, KeepsTheTerminal, "keeps sys.stdout when it is told that a run has failed: give back what it replaced"),
        (KIND, WalksAway, "leaves another working directory behind when it is told that a run has finished"),
        (KIND, LeavesAThread, "leaves the thread Thread-"),
    ],
    "runs follow each other": [
        (KIND, OneOfAKind, "fails when it is told that a run has started: RuntimeError: there is one already"),
        (KIND, NewFolderOnly, "fails when it is told that a run has started: FileExistsError"),
    ],
    "writes in its run only": [
        (KIND, WritesHere, "writes ./diary.txt outside of the run's folder: write to self.run.folder"),
        (KIND, WritesAtHome, "writes ~/.diary outside of the run's folder"),
        (KIND, WritesBesideTheRun, "writes check/diary.txt outside of the run's folder"),
        (KIND, WritesIntoTheExperiment, "changes the run's experiment.yaml, with which it is repeated"),
    ],
    "sends nothing unasked": [(KIND, CallsHome, "tries to reach 192.0.2.1 by Config.tiny(): send nothing that nobody")],
    "leaves what it is told": [
        (KIND, TakesOutTheStep, "changes what it is given when it is told that a run has finished a step: copy it"),
        (KIND, ShrinksPictures, "changes what it is given when it is told that a run was evaluated: copy it"),
    ],
    "randomness is left alone": [(KIND, DrawsAName, "changes the global random state of Python while it watches a")],
}  # fmt: skip
