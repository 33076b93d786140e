"""Stands in for the program nanovlm in a sweep's tests: it starts at once, and does to its run what it is told to.

    python stand_in.py '{"factor=1": "fail"}' train EXPERIMENT --run-dir|--resume FOLDER [--plugin FILE]...

By variant: ``finish`` (by default), ``fail`` (as a bug does), ``refuse`` (as bad input), ``vanish`` (without a word),
``die`` (by SIGKILL), ``last`` (until it is told to end), ``ignore`` (until it is told so twice), ``crash`` (like
``last``, but killed by SIGKILL after its checkpoint). Each start adds a line to ``<run>.starts``, each signal one to
``<run>.signals``.
"""

import fcntl
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

told = []


def add(file, line):
    with file.open("a") as content:
        content.write(f"{line}\n")


def main():
    behaviours, words = json.loads(sys.argv[1]), sys.argv[2:]
    experiment, run = Path(words[1]), Path(words[3])
    what = behaviours.get(run.parent.name, "finish")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: hear(number, run.with_name(f"{run.name}.signals")))
    environment = {key: os.environ.get(key) for key in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
    start = {"words": words, "session": os.getsid(0), "pid": os.getpid(), "time": time.time(), **environment}
    add(run.with_name(f"{run.name}.starts"), json.dumps(start))
    if what == "refuse":
        print("nanovlm: projector: factor=3 must divide\n  the grid", file=sys.stderr)
        sys.exit(2)
    if words[2] == "--run-dir":
        run.mkdir(parents=True)  # as nanovlm does, it refuses a folder that holds a run
    lock = (run / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    shutil.copy(experiment, run / "experiment.yaml")
    (run / "provenance.json").write_text("{}")
    for plugin in words[5::2]:
        shutil.copy(plugin, run / Path(plugin).name)
    print("one line of output")
    add(run / "metrics.jsonl", json.dumps({"event": "step", "step": 2, "loss": 0.5, "samples": 16, "seconds": 1.0}))
    act(what, run)
    (run / "metrics.jsonl").touch()
    summary = {"steps": 3, "wall_seconds": 2.0, "benchmarks": {"shapes": {"accuracy": 0.25}}}
    (run / "summary.json").write_text(json.dumps(summary))
    add(run.with_name(f"{run.name}.starts"), json.dumps({"end": time.time()}))


def act(what, run):
    if what == "fail":
        raise ValueError("a bug")
    if what == "vanish":
        sys.exit(3)
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what in ("last", "ignore", "crash"):
        while len(told) < (2 if what == "ignore" else 1):
            time.sleep(0.005)
        (run / "checkpoints").mkdir(exist_ok=True)
        (run / "checkpoints" / "2").touch()
        if what == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        print(f"nanovlm: stopped after step 2 of 3; go on with nanovlm train --resume {run}", file=sys.stderr)
        sys.exit(1)
    time.sleep(0.05)


def hear(number, file):
    told.append(number)
    add(file, signal.Signals(number).name)


main()
