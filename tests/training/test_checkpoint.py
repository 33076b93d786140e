import errno
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import nanovlm.training.checkpoint as checkpoint_module
from nanovlm import files
from nanovlm.errors import CheckpointError
from nanovlm.files import DTYPES, write_tensors, write_whole
from nanovlm.training.checkpoint import Checkpoints, Snapshot

FACTS = {"samples": 24, "loss": 1e-05, "order": [3, 1], "best": {"step": None, "kept": True}, "word": "é"}


def snapshot(step: int, facts=FACTS) -> Snapshot:
    """Of a few numbers that only this step has."""
    weights = torch.arange(6.0).reshape(2, 3) + step
    moments = {"exp_avg": weights / 7, "step": torch.tensor(step)}
    return Snapshot.of(step, {"model": {"weight": weights}, "optimizer": moments}, facts)


def written(folder: Path, *steps: int, keep_last: int = 9) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep_last)
    for step in steps:
        checkpoints.write(snapshot(step))
    checkpoints.wait()
    return checkpoints


def assert_same(found: Snapshot | None, expected: Snapshot) -> None:
    assert found is not None and (found.step, found.facts) == (expected.step, expected.facts)
    torch.testing.assert_close(found.tensors, expected.tensors, rtol=0, atol=0)


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# What is written and read


def test_the_newest_is_read_as_it_was_written(tmp_path):
    written(tmp_path / "checkpoints", 100, 99, 250_000_000, 20)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=1)
    assert checkpoints.steps() == [20, 99, 100, 250_000_000]
    assert_same(checkpoints.newest(), snapshot(250_000_000))
    assert checkpoints.broken == []


def test_a_run_without_checkpoints_has_no_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=1)
    assert (checkpoints.newest(), checkpoints.steps(), checkpoints.broken) == (None, [], [])
    assert not (tmp_path / "checkpoints").exists()  # a look changes nothing


def test_the_files_are_plain_safetensors_and_json(tmp_path):
    written(tmp_path, 7)
    folder = tmp_path / "00000007"
    assert listing(tmp_path) == ["00000007", *(f"00000007/{name}" for name in ("model.safetensors",
                                 "optimizer.safetensors", "state.json"))]  # fmt: skip
    state = json.loads((folder / "state.json").read_text(), parse_constant=pytest.fail)
    assert (state["version"], state["step"], state["facts"]) == (1, 7, FACTS)
    for name, expected in state["files"].items():
        content = (folder / name).read_bytes()
        assert expected == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        assert load_file(folder / name).keys() == snapshot(7).tensors[name.removesuffix(".safetensors")].keys()


def test_numbers_survive_bit_for_bit(tmp_path):
    facts = {
        "floats": [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1 / 3, math.inf, -math.inf, math.nan],
        "ints": [2**53 + 1, -(2**64), 10**400, True],
        "words": ["", "\ud800", "\0", "$float"],
    }
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.write(snapshot(2, facts))
    checkpoints.wait()
    found = checkpoints.newest().facts
    assert [number.hex() for number in found["floats"]] == [number.hex() for number in facts["floats"]]
    assert (found["ints"], found["words"]) == (facts["ints"], facts["words"])
    assert found["ints"][-1] is True


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"a": {(1, 2): 3}}, r"facts\.a: JSON would not give back the key \(1, 2\)"),
        ({1: 2}, r"facts: JSON would not give back the key 1"),
        ({"a": {"$float": "nan"}}, r"facts\.a: JSON would not give back the key '\$float'"),
        ({"a": [0, (1, 2)]}, r"facts\.a\.1: JSON would not give back a tuple"),
        ({"a": torch.tensor(1)}, r"facts\.a: JSON would not give back a Tensor"),
    ],
)
def test_facts_that_json_would_change_are_a_bug(facts, message):
    with pytest.raises(TypeError, match=message):
        Snapshot.of(1, {}, facts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_safetensors_reads_every_dtype_and_shape(tmp_path, dtype):
    shapes = [(), (0,), (3,), (2, 0, 4), (5, 1, 3)]
    generator = torch.Generator().manual_seed(0)
    tensors = {"a byte first": torch.tensor([7], dtype=torch.uint8)}
    for shape in shapes:
        tensors[f"é {shape}"] = (torch.randn(shape, generator=generator) * 50).to(dtype)
    facts = write_tensors(tmp_path / "x.safetensors", tensors)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].equal(tensor)
        assert found[name].data_ptr() % tensor.element_size() == 0
    assert facts["bytes"] == (tmp_path / "x.safetensors").stat().st_size


def test_a_file_without_tensors_is_read_too(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.write(Snapshot.of(1, {"model": {}}, {}))
    checkpoints.wait()
    assert_same(checkpoints.newest(), Snapshot(1, {"model": {}}, {}))


def test_a_snapshot_is_a_copy(tmp_path):
    weight, facts = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T), {"skipped": {"no target": [1]}}
    taken = Snapshot.of(1, {"model": {"weight": weight}}, facts)
    with torch.no_grad():
        weight.add_(100)
    facts["skipped"]["no target"].append(2)
    copy = taken.tensors["model"]["weight"]
    assert copy.equal(torch.arange(6.0).reshape(2, 3).T) and copy.is_contiguous() and not copy.requires_grad
    assert taken.facts == {"skipped": {"no target": [1]}}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_snapshot_of_a_gpu_is_complete_and_pinned():
    weight = torch.zeros(1 << 26, device="cuda")
    taken = Snapshot.of(1, {"model": {"weight": weight.add_(1)}}, {}).tensors["model"]["weight"]
    weight.add_(1)
    assert taken.is_pinned() and taken.eq(1).all()


def test_a_dtype_that_no_file_holds_names_its_tensor():
    with pytest.raises(
        CheckpointError, match=r"model: rotary is torch\.complex64, which no checkpoint holds: make it a non-persistent"
    ):
        Snapshot.of(1, {"model": {"rotary": torch.zeros(1, dtype=torch.complex64)}}, {})


# While training goes on


@pytest.fixture
def held(monkeypatch):
    """Writing stands still until this event is set."""
    go_on = threading.Event()

    def write_tensors_later(*arguments):
        assert go_on.wait(timeout=30)
        return write_tensors(*arguments)

    monkeypatch.setattr(checkpoint_module, "write_tensors", write_tensors_later)
    yield go_on
    go_on.set()


def test_writing_goes_on_in_the_background(tmp_path, held):
    checkpoints = Checkpoints(tmp_path, 9)
    checkpoints.write(snapshot(1))  # returns though nothing can be written
    assert (checkpoints.steps(), checkpoints.newest()) == ([], None)
    held.set()
    checkpoints.wait()
    assert_same(checkpoints.newest(), snapshot(1))


def test_one_is_written_at_a_time(tmp_path, held):
    checkpoints = Checkpoints(tmp_path, 9)
    checkpoints.write(snapshot(1))
    threading.Timer(0.05, held.set).start()
    checkpoints.write(snapshot(2))
    assert 1 in checkpoints.steps()
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]


def test_what_went_wrong_is_raised_once_by_the_next_write(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, 9)
    with monkeypatch.context() as patch:
        fail_to_write(patch, errno.EIO)
        checkpoints.write(snapshot(1))
        with pytest.raises(CheckpointError, match="checkpoint of step 1 could not be written"):
            checkpoints.write(snapshot(2))
    checkpoints.wait()
    checkpoints.write(snapshot(3))
    checkpoints.wait()
    assert checkpoints.steps() == [3]


def test_the_last_is_the_one_that_stands_for_the_run(tmp_path, monkeypatch, held):
    held.set()
    written(tmp_path, 1, 2)
    emptied(tmp_path / "00000002")
    checkpoints = Checkpoints(tmp_path, 9)
    assert checkpoints.last is None
    assert checkpoints.newest().step == checkpoints.last == 1
    held.clear()
    checkpoints.write(snapshot(2))
    assert checkpoints.last == 2  # on its way
    held.set()
    checkpoints.wait()
    assert checkpoints.last == 2
    fail_to_write(monkeypatch, errno.ENOSPC)
    checkpoints.write(snapshot(3))
    with pytest.raises(CheckpointError):
        checkpoints.wait()
    assert checkpoints.last is None


# Which are kept


@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_the_last_are_kept(tmp_path, keep_last):
    assert written(tmp_path, *range(10, 60, 10), keep_last=keep_last).steps() == [30, 40, 50][3 - keep_last :]


def test_none_is_deleted_before_the_next_is_whole(tmp_path, held):
    held.set()
    checkpoints = written(tmp_path, 1, keep_last=1)
    held.clear()
    checkpoints.write(snapshot(2))
    assert_same(checkpoints.newest(), snapshot(1))
    held.set()
    checkpoints.wait()
    assert checkpoints.steps() == [2]


def test_the_one_just_written_is_kept_though_it_is_not_the_last(tmp_path):
    written(tmp_path, 10, 20)
    assert written(tmp_path, 5, keep_last=1).steps() == [5, 20]


def test_what_was_passed_over_is_deleted_once_the_run_has_gone_on(tmp_path):
    written(tmp_path, 10, 20, 30)
    (tmp_path / "00000030" / "state.json").unlink()
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    assert_same(checkpoints.newest(), snapshot(20))
    assert checkpoints.steps() == [10, 20, 30]  # still there to be looked at
    checkpoints.write(snapshot(25))
    checkpoints.wait()
    assert checkpoints.steps() == [20, 25]


def test_one_that_was_passed_over_counts_again_once_it_is_written_anew(tmp_path):
    written(tmp_path, 10, 20, 30)
    emptied(tmp_path / "00000030")
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    assert checkpoints.newest().step == 20
    checkpoints.write(snapshot(30))
    checkpoints.wait()
    assert checkpoints.steps() == [30]


def test_keeping_none_is_a_bug(tmp_path):
    with pytest.raises(ValueError, match="keep_last=0: the newest checkpoint is always kept"):
        Checkpoints(tmp_path, 0)


def test_one_of_the_same_step_is_replaced(tmp_path):
    written(tmp_path, 5)
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.write(snapshot(5, {"again": True}))
    checkpoints.wait()
    assert_same(checkpoints.newest(), snapshot(5, {"again": True}))
    assert not [name for name in listing(tmp_path) if ".old" in name or ".part" in name]


def test_what_a_killed_process_left_is_cleared_away_at_the_next_write(tmp_path):
    written(tmp_path, 1, 2)
    (tmp_path / "00000002").rename(tmp_path / "00000002.old")  # between the two renames
    (tmp_path / "00000002.part").mkdir()
    (tmp_path / "00000003.part").mkdir()
    (tmp_path / "00000003.part" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "notes.part").write_text("not ours")
    checkpoints = Checkpoints(tmp_path, 9)
    assert_same(checkpoints.newest(), snapshot(2))
    checkpoints.write(snapshot(4))
    checkpoints.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "00000002", "00000004", "notes.part"]
    assert_same(Checkpoints(tmp_path, 9).newest(), snapshot(4))


# Broken ones

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


def renamed(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("00000001"), folder)


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("what?")


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def changed_state(**changes):
    """With a right checksum."""

    def change(folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text()) | changes
        del state["sha256"]
        state["sha256"] = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
        (folder / "state.json").write_text(json.dumps(state))

    return change


def write_into(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def flip_into(name: str, old: bytes, new: bytes):
    def flip(folder: Path) -> None:
        content = (folder / name).read_bytes()
        assert old in content
        (folder / name).write_bytes(content.replace(old, new, 1))

    return flip


BROKEN = {
    **{f"no {name}": (lambda folder, name=name: (folder / name).unlink(), f"{{}} has no {name}") for name in FILES},
    **{f"empty {name}": (write_into(name, b""), f"{{}}/{name} is empty") for name in FILES},
    **{
        f"{name} is a folder": (
            lambda folder, name=name: ((folder / name).unlink(), (folder / name).mkdir()),
            f"{{}} has no {name}",
        )
        for name in FILES
    },
    "cut off": (
        lambda folder: os.truncate(folder / "model.safetensors", 99),
        "{}/model.safetensors has 99 bytes, not the 104 that were written",
    ),
    "longer": (
        lambda folder: os.truncate(folder / "model.safetensors", 1234),
        "{}/model.safetensors has 1,234 bytes, not the 104 that were written",
    ),
    "state cut off": (lambda folder: os.truncate(folder / "state.json", 99), "{}/state.json is not JSON: Expecting "),
    "no UTF-8": (flip_into("state.json", b"facts", b"f\xffcts"), "{}/state.json is not JSON: 'utf-8' codec"),
    "another fact": (
        flip_into("state.json", b'"samples": 24', b'"samples": 26'),
        "{}/state.json is not as it was written: its checksum differs",
    ),
    "a list": (write_into("state.json", b"[]"), "{}/state.json is not a JSON object"),
    "of the future": (
        changed_state(version=2), "{}/state.json is of version 2; this nanovlm reads version 1",
    ),
    "of somebody else": (
        write_into("state.json", b"{}"), "{}/state.json is of version None; this nanovlm reads version 1",
    ),
    "renamed": (renamed, "{} is of step 1 by its state.json: it was renamed or copied"),
    "a file": (a_file, "{} is a file, not the folder of a checkpoint"),
    "an empty folder": (emptied, "{} is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_one_is_recognised_and_the_one_before_it_used(tmp_path, name):
    damage, message = BROKEN[name]
    written(tmp_path, 1, 2, 3)
    damage(tmp_path / "00000003")
    checkpoints = Checkpoints(tmp_path, 9)
    assert_same(checkpoints.newest(), snapshot(2))
    (sentence,) = checkpoints.broken
    assert sentence.startswith(message.format(tmp_path / "00000003"))
    assert sentence.endswith("; the checkpoint of step 2 is used instead")
    checkpoints.write(snapshot(3))  # takes the place of whatever is there
    checkpoints.wait()
    assert_same(checkpoints.newest(), snapshot(3))
    assert checkpoints.broken == [] and checkpoints.steps() == [1, 2, 3]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_recognised_wherever_it_is(tmp_path, name):
    written(tmp_path, 1, 2)
    file = tmp_path / "00000002" / name
    whole = file.read_bytes()
    recognised = 0
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        found = Checkpoints(tmp_path, 9).newest()
        if found.step == 1:
            recognised += 1
        else:  # JSON has two spellings of some numbers and letters: 1e-05, 1E-05
            assert name == "state.json"
            assert_same(found, snapshot(2))
    assert recognised >= len(whole) - (2 if name == "state.json" else 0)


def test_an_unreadable_one_is_passed_over(tmp_path, monkeypatch):
    written(tmp_path, 1, 2)

    def fail(content, *_):
        if "00000002" in content.name:
            raise OSError(errno.EIO, "Input/output error")
        return hashlib.new("sha256", content.read())

    monkeypatch.setattr(checkpoint_module.hashlib, "file_digest", fail)
    checkpoints = Checkpoints(tmp_path, 9)
    assert_same(checkpoints.newest(), snapshot(1))
    assert checkpoints.broken == [
        f"{tmp_path}/00000002 cannot be read: input/output error; the checkpoint of step 1 is used instead"
    ]


def test_several_broken_ones_are_passed_over(tmp_path):
    written(tmp_path, 1, 2, 3)
    emptied(tmp_path / "00000002")
    a_file(tmp_path / "00000003")
    checkpoints = Checkpoints(tmp_path, 9)
    assert checkpoints.newest().step == 1
    assert checkpoints.broken == [
        f"{tmp_path}/00000003 is a file, not the folder of a checkpoint; the checkpoint of step 1 is used instead",
        f"{tmp_path}/00000002 is empty; the checkpoint of step 1 is used instead",
    ]


def test_if_none_is_whole_all_are_listed(tmp_path):
    written(tmp_path, 1, 2)
    emptied(tmp_path / "00000001")
    (tmp_path / "00000002" / "state.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        Checkpoints(tmp_path, 9).newest()
    assert str(caught.value) == (
        f"{tmp_path} has no whole checkpoint:\n"
        f"- {tmp_path}/00000002 has no state.json\n"
        f"- {tmp_path}/00000001 is empty\n"
        "Put a good copy of one there, or start the run again"
    )


def test_a_file_in_the_place_of_all_checkpoints(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    for look in (Checkpoints.newest, Checkpoints.steps):
        with pytest.raises(CheckpointError, match=r"the checkpoints in .*/checkpoints cannot be read: not a directory"):
            look(Checkpoints(tmp_path / "checkpoints", 9))


# Disks that do not take it


def fail_to_write(monkeypatch, code: int) -> None:
    """The second file of each checkpoint meets this error."""

    def write(file: Path, tensors):
        if file.name == "optimizer.safetensors":
            raise OSError(code, os.strerror(code))
        return write_tensors(file, tensors)

    monkeypatch.setattr(checkpoint_module, "write_tensors", write)


REMEDIES = {
    errno.ENOSPC: ("no space left on device", "free space"),
    errno.EDQUOT: ("disk quota exceeded", "free space or raise your quota"),
    errno.EFBIG: ("file too large", r"raise the limit on the size of a file \(ulimit -f\)"),
    errno.EROFS: ("read-only file system", "see to it that .*/my run/checkpoints can be written"),
}


@pytest.mark.parametrize("code", REMEDIES, ids=errno.errorcode.get)
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, code):
    reason, remedy = REMEDIES[code]
    folder = tmp_path / "my run" / "checkpoints"
    folder.parent.mkdir()
    checkpoints = written(folder, 1, 2)
    before = listing(folder)
    fail_to_write(monkeypatch, code)
    checkpoints.write(snapshot(3))
    message = (
        f"^checkpoint of step 3 could not be written: {reason}; the last whole checkpoint is of step 2 "
        rf"\({folder}/00000002\); {remedy}, then go on with `nanovlm train --resume '{folder.parent}'`$"
    )
    with pytest.raises(CheckpointError, match=message):
        checkpoints.wait()
    assert listing(folder) == before
    assert_same(checkpoints.newest(), snapshot(2))


def test_a_full_disk_leaves_the_one_that_was_to_be_replaced(tmp_path, monkeypatch):
    checkpoints = written(tmp_path, 1)
    fail_to_write(monkeypatch, errno.ENOSPC)
    checkpoints.write(snapshot(1, {"again": True}))
    with pytest.raises(CheckpointError, match="the last whole checkpoint is of step 1 "):
        checkpoints.wait()
    assert_same(checkpoints.newest(), snapshot(1))


def test_the_last_whole_one_is_not_one_that_is_broken(tmp_path, monkeypatch):
    checkpoints = written(tmp_path, 1, 2)
    emptied(tmp_path / "00000002")
    fail_to_write(monkeypatch, errno.ENOSPC)
    checkpoints.write(snapshot(3))
    with pytest.raises(CheckpointError, match=r"the last whole checkpoint is of step 1 \(.*/00000001\)"):
        checkpoints.wait()


def test_a_disk_that_is_full_from_the_first_one_on(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints", 9)
    fail_to_write(monkeypatch, errno.ENOSPC)
    checkpoints.write(snapshot(1))
    message = (
        "^checkpoint of step 1 could not be written: no space left on device; there is no whole checkpoint in "
        f"{tmp_path}/checkpoints; free space, then start the run again$"
    )
    with pytest.raises(CheckpointError, match=message):
        checkpoints.wait()
    assert listing(tmp_path) == ["checkpoints"]


def test_a_disk_that_is_full_only_when_it_is_synced(tmp_path, monkeypatch):
    checkpoints = written(tmp_path, 1)

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fail)
        checkpoints.write(snapshot(2))
        with pytest.raises(CheckpointError, match="checkpoint of step 2 could not be written: no space left"):
            checkpoints.wait()
    assert checkpoints.steps() == [1] and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("what", ["a file", "nothing"])
def test_no_folder_to_write_into(tmp_path, what):
    folder = tmp_path / "run" / "checkpoints"
    if what == "a file":
        folder.parent.mkdir()
        folder.write_text("")
    checkpoints = Checkpoints(folder, 9)
    checkpoints.write(snapshot(1))
    message = (
        f"^checkpoint of step 1 could not be written: .*; there is no whole checkpoint in {folder}; "
        f"see to it that {folder} can be written, then start the run again$"
    )
    with pytest.raises(CheckpointError, match=message):
        checkpoints.wait()
    assert listing(tmp_path) == (["run", "run/checkpoints"] if what == "a file" else [])  # a lost disk stays lost


def test_a_real_limit_is_met(tmp_path):
    """The operating system refuses files of more than 64 KiB."""
    script = """
import resource, sys, torch
from pathlib import Path
from nanovlm.errors import CheckpointError
from nanovlm.training.checkpoint import Checkpoints, Snapshot

checkpoints = Checkpoints(Path(sys.argv[1]), 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
for step, size in ((1, 1000), (2, 100_000)):
    checkpoints.write(Snapshot.of(step, {"model": {"weight": torch.zeros(size)}}, {}))
try:
    checkpoints.wait()
except CheckpointError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    words = "checkpoint of step 2 could not be written: file too large; the last whole checkpoint is of"
    assert done.stdout.startswith(words)
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]
    assert Checkpoints(tmp_path, 1).newest().step == 1


# Processes that are killed

KILLED = """
import os, random, signal, sys, time
from itertools import count
from pathlib import Path
import torch
from nanovlm.training.checkpoint import Checkpoints, Snapshot, _read

folder, how = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)

def write(report, numbers):
    "Each step twice, so that one is replaced, too; ``report`` gets a byte for each one that is finished."
    checkpoints = Checkpoints(folder, keep_last=2)
    for number in numbers:
        tensors = {file: {"weight": torch.full((500,), number)} for file in ("model", "optimizer")}
        checkpoints.write(Snapshot.of(number // 2, tensors, {"number": number}))
        checkpoints.wait()
        os.write(report, b".")

def die_at(moment):
    "Before the operation of this number on the disk."
    moments = iter(range(moment))
    def hook(event, arguments):
        touches = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir") or (
            event == "open" and str(folder) in str(arguments[0]))
        if touches and next(moments, None) is None:
            os._exit(9)
    sys.addaudithook(hook)

def round_of(first, last, moment):
    "Numbers of the last that was finished and of the newest; whether the child was killed."
    heard, report = os.pipe()
    child = os.fork()
    if not child:
        if how == "each operation":
            die_at(moment)
        write(report, range(first, last) if how == "each operation" else count(first))
        os._exit(0)
    os.close(report)
    finished = first - 1
    if how == "random moments":
        finished += len(os.read(heard, 1))  # on a busy machine the first takes a while
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    finished += len(os.read(heard, 1 << 16))
    os.close(heard)
    checkpoints = Checkpoints(folder, 2)
    newest = checkpoints.newest()
    number = newest.facts["number"] if newest else -1
    for step, path in checkpoints._folders().items():  # none is torn, not one that was being deleted either
        snapshot = _read(path, step)
        for named in snapshot.tensors.values():
            assert named["weight"].eq(snapshot.facts["number"]).all()
    killed = os.waitstatus_to_exitcode(status) != 0
    print(finished, number, int(killed), flush=True)
    return number + 1, killed

if how == "random moments":
    chance, first = random.Random(0), 0
    for _ in range(20):
        first, _ = round_of(first, None, chance.uniform(0, 0.04))
else:
    first, _ = round_of(0, 6, sys.maxsize)  # so that there is something to delete
    moment, killed = 0, True
    while killed:
        first -= first % 2
        first, killed = round_of(first, first + 2, moment)
        moment += 1
"""


@pytest.mark.parametrize("how", ["random moments", "each operation"])
def test_a_killed_process_leaves_a_whole_one_no_older_than_the_last_that_was_finished(tmp_path, how):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "checkpoints"), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr
    rounds = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert sum(killed for *_, killed in rounds) >= 20
    assert all(finished <= newest <= finished + 1 for finished, newest, _ in rounds), rounds
    assert rounds[-1][1] > 5  # something was written


def test_all_is_on_the_disk_before_the_name_appears_and_then_the_name(tmp_path, monkeypatch):
    folder, sync, before, after = tmp_path / "00000001", os.fsync, set(), set()

    def fsync(descriptor: int) -> None:
        (after if folder.exists() else before).add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)
    written(tmp_path, 1)
    assert before == {path.stat().st_ino for path in (folder, *folder.iterdir())}
    assert after == {tmp_path.stat().st_ino}


# Other files


def test_a_text_that_cannot_be_written_leaves_the_old_file_alone(tmp_path):
    write_whole(tmp_path / "new" / "a.json", "old é\n")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "new" / "a.json", "\ud800")
    assert listing(tmp_path) == ["new", "new/a.json"]
    assert (tmp_path / "new" / "a.json").read_bytes() == "old é\n".encode()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EBADF])
def test_a_file_system_that_syncs_no_folders_is_written_to(tmp_path, monkeypatch, code):
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/dev/fd/{descriptor}"):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)
    assert written(tmp_path, 1).steps() == [1]
