import os
import pickle
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from numbered import Numbers, Parted, data_of, mixture_of
from PIL import Image

from nanovlm import DataError, ImageSpec, Sample, Turn, load_plugins
from nanovlm.data.conversation import TextFormat
from nanovlm.data.loader import HeldOut, Packing, Preparation, Step, Steps
from nanovlm.data.mixture import Mixture
from nanovlm.data.tally import Tally, describe, wholly_skipped
from nanovlm.data.tokenizer import byte_tokenizer
from nanovlm.data.workers import _Portable, load

BROKEN = {3: "gone", 8: "gone", 20: "no answer", 21: "too long", 22: "undecodable picture", 23: "too many pictures"}


def preparation() -> Preparation:
    return Preparation(TextFormat(byte_tokenizer(), "question_answer"), ImageSpec(4), data_of(max_text_tokens=60))


def steps_of(mixture: Mixture, samples_per_step: int, samples: int, tokens_per_row: int = 100) -> Steps:
    return Steps(mixture, preparation(), Packing(2, tokens_per_row, 256), samples_per_step, samples)


def shades(step: Step) -> list[int]:
    """Which samples a step holds, by their pictures."""
    return [int(pixels[0, 0, 0]) for row in step.rows for pixels in row.pixels]


def assert_same(first: Step, second: Step) -> None:
    assert first.skipped == second.skipped
    assert len(first.rows) == len(second.rows)
    for mine, other in zip(first.rows, second.rows, strict=True):
        for name in ("token_ids", "targets", "pixels", "image_slots", "target_slots"):
            assert getattr(mine, name).equal(getattr(other, name))
        assert mine.segments.cu_seqlens.equal(other.segments.cu_seqlens)


def test_a_subset_of_which_nothing_can_be_used_is_told_by_name():
    faults = {**dict.fromkeys(range(20, 29), "gone"), 29: "too long", 35: "gone"}
    steps = steps_of(mixture_of(Numbers(10), Parted(1.0, 1.0, 1.0, broken=faults)), 50, 50)
    step = steps[0]
    assert step.skipped == {"gone": 10, "too long": 1}
    assert step.tally["data.train.0", ""] == 10
    assert step.tally["data.train.1, subset 'c'", ""] == 9
    assert wholly_skipped(step.tally) == [
        "data.train.1, subset 'b': all 10 of its samples that came up were skipped (9 gone, 1 too long)"
    ]


def test_turns_that_a_dataset_leaves_out_are_counted():
    class Shorter(Numbers):
        def __getitem__(self, index: int) -> Sample:
            return replace(super().__getitem__(index), left_out={"odd": 2, "late": 1} if index % 2 else {})

    step = steps_of(mixture_of(Shorter(6, broken={1: "no answer"})), 6, 6)[0]
    assert step.left_out == {"odd": 4, "late": 2}  # a sample that is skipped is not counted twice


def test_steps_are_the_order_in_pieces():
    mixture = mixture_of(Numbers(50))
    steps = steps_of(mixture, 8, 20)
    assert len(steps) == 3
    assert [steps[n].num_samples for n in range(3)] == [8, 8, 4]
    seen = [shade for n in range(3) for shade in shades(steps[n])]
    assert seen == [mixture.at(position)[1] for position in range(20)]


def test_a_step_is_the_same_whoever_asks_and_whenever():
    steps, again = (steps_of(mixture_of(Numbers(50)), 8, 100) for _ in range(2))
    later = {n: again[n] for n in (7, 3, 12, 0)}
    for n, step in later.items():
        assert_same(steps[n], step)


def test_broken_samples_make_a_step_smaller_and_shift_nothing():
    whole, broken = (steps_of(mixture_of(Numbers(40, broken=faults)), 8, 80) for faults in ({}, BROKEN))
    skipped: Counter[str] = Counter()
    for n in range(len(whole)):
        step = broken[n]
        assert shades(step) == [shade for shade in shades(whole[n]) if shade not in BROKEN]
        assert step.num_samples + step.skipped.total() == whole[n].num_samples
        skipped += step.skipped
    assert skipped == {reason: 2 * count for reason, count in Counter(BROKEN.values()).items()}  # in two epochs


def test_a_step_without_any_good_sample_has_no_row():
    step = steps_of(mixture_of(Numbers(4, broken=dict.fromkeys(range(4), "gone"))), 4, 4)[0]
    assert (step.rows, step.num_samples, step.skipped) == ([], 0, {"gone": 4})


def test_of_each_reason_the_first_sample_is_named():
    steps = steps_of(mixture_of(Numbers(40, broken=BROKEN)), 8, 80)
    tally = Tally()
    for n in range(len(steps)):
        tally.add(steps[n], last=n + 1 == len(steps))
    order = [steps.mixture.at(position)[1] for position in range(40)]
    firsts = {reason: next(i for i in order if BROKEN.get(i) == reason) for reason in BROKEN.values()}
    assert tally.summary()["first_skipped"] == {reason: steps.mixture.datasets[0].id(i) for reason, i in firsts.items()}
    again = Tally.together([tally.state(), Tally().state()])
    assert again.first_skipped == tally.first_skipped
    assert describe(Counter({"gone": 2, "odd": 3}), {"gone": "a/1.png"}) == "3 odd, 2 gone (first a/1.png)"


def test_held_out_steps_cover_every_held_out_sample():
    mixture = mixture_of(Numbers(200), share=0.3)
    held_out = HeldOut(mixture, preparation(), Packing(2, 100, 256), 16)
    seen = [shade for n in range(len(held_out)) for shade in shades(held_out[n])]
    assert seen == [index for _, index in mixture.held_out]


@pytest.mark.parametrize(("most", "shared"), [(2**22, False), (0, True)])
def test_only_large_tensors_come_in_memory_that_is_shared_with_a_worker(monkeypatch, most, shared):
    monkeypatch.setattr("nanovlm.data.workers.COPIED", most)  # in bytes
    (step,) = load(steps_of(mixture_of(Numbers(8)), 4, 4), 1)
    row = step.rows[0]
    assert [tensor.is_shared() for tensor in (row.token_ids, row.pixels, row.segments.cu_seqlens)] == [shared] * 3


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(workers):
    steps = steps_of(mixture_of(Numbers(40, broken=BROKEN)), 8, 60)
    alone, helped = (list(load(steps, count)) for count in (0, workers))
    assert len(alone) == len(helped) == 8
    for mine, other in zip(alone, helped, strict=True):
        assert_same(mine, other)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_user_can_put_right_is_one_line_from_a_worker_too(workers):
    class Special(DataError):
        def __init__(self, what: str, where: str) -> None:  # does not survive the way from a worker
            super().__init__(f"{where}: {what}")

    class Faulty(Numbers):
        def __getitem__(self, index: int) -> Sample:
            raise Special("it is bad", f"row {index % 1}")

    with pytest.raises(DataError) as caught:
        list(load(steps_of(mixture_of(Faulty(4)), 4, 4), workers))
    assert str(caught.value) == "data.train.0: row 0: it is bad"


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_generator_alone(workers):
    """Else dropout would depend on how often a run validates."""
    before = torch.get_rng_state()
    list(load(steps_of(mixture_of(Numbers(8)), 4, 8), workers))
    assert torch.get_rng_state().equal(before)


def test_pictures_of_turns_left_out_are_not_read():
    prepare = replace(preparation(), limits=data_of(turns="first"))
    turns = [Turn("<image>", "a"), Turn("<image>", "b")]
    example = prepare(Sample([Image.new("L", (1, 1)), b"broken"], turns, "x"))
    assert len(example.pixels) == 1


PLUGIN = """
from nanovlm import ComponentConfig, Dataset, Sample, Turn, hookimpl

class Squares(Dataset):
    class Config(ComponentConfig):
        pass
    def __init__(self, config, split):
        pass
    def __len__(self):
        return 9
    def id(self, index):
        return f"square-{index}"
    def __getitem__(self, index):
        return Sample([], [Turn(f"{index} squared?", str(index**2))], self.id(index))

@hookimpl
def register_datasets(register):
    register("squares", Squares)
"""
WORKER = """
import pickle, sys
step = pickle.load(open(sys.argv[1], "rb"))[0]
print(step.num_samples, step.rows[0].num_targets)
"""


def test_a_spawned_worker_knows_the_plugins_given_by_path(tmp_path):
    file = tmp_path / "squares_plugin.py"
    file.write_text(PLUGIN)
    entry = load_plugins([str(file)]).datasets.find("squares")
    steps = steps_of(mixture_of(entry.cls(entry.cls.Config(), "train")), 9, 9, tokens_per_row=1000)
    (tmp_path / "steps.pickle").write_bytes(pickle.dumps(_Portable(steps, [str(file)])))
    command = [sys.executable, "-c", WORKER, str(tmp_path / "steps.pickle")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["9", str(steps[0].rows[0].num_targets)]


class Deadly(Numbers):
    """Reading number 5 ends the process that reads it, as the system does to one that takes too much memory."""

    def __getitem__(self, index: int) -> Sample:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_dies_is_told_at_once():
    steps = steps_of(mixture_of(Deadly(8)), 2, 8)
    with pytest.raises(
        DataError, match=r"^a process that prepares data died \(.*worker.*\): the system may have .*workers=0"
    ):
        list(load(steps, workers=1))
