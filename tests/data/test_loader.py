import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image

from nanovlm import DataError, Dataset, ImageSpec, Sample, SkipSample, Turn, load_plugins
from nanovlm.data.conversation import TextFormat, byte_tokenizer
from nanovlm.data.loader import HeldOut, Mixture, Packing, Preparation, Step, Steps, is_held_out
from nanovlm.data.workers import _Portable, load
from nanovlm.experiment import Data

BROKEN = {3: "gone", 8: "gone", 20: "no answer", 21: "too long", 22: "undecodable picture", 23: "too many pictures"}


class Numbers(Dataset):
    """Sample ``i`` asks about the number i and has a picture of its shade."""

    def __init__(self, size: int, name: str = "n", broken: dict[int, str] | None = None) -> None:
        self.size, self.name, self.broken = size, name, broken or {}

    def __len__(self) -> int:
        return self.size

    def id(self, index: int) -> str:
        return f"{self.name}-{index}"

    def __getitem__(self, index: int) -> Sample:
        fault = self.broken.get(index)
        if fault == "gone":
            raise SkipSample("gone")
        picture = b"no picture" if fault == "undecodable picture" else Image.new("L", (4, 4), index % 256)
        answer = {"no answer": " ", "too long": "1" * 100}.get(fault, str(index))
        images = [picture] * (3 if fault == "too many pictures" else 1)
        return Sample(images, [Turn("Which?", answer)], self.id(index))


def data_of(share: float = 0.0, seed: int = 0, limit: int = 0, **options) -> Data:
    validation = {"share": share, "limit": limit}
    return Data.model_validate(
        {"train": ["numbers"], "validation": validation, "seed": seed, "max_images": 2, **options}
    )


def mixture_of(*datasets: Dataset, weights: list[float] | None = None, seed: int = 0, **options) -> Mixture:
    return Mixture(datasets, weights or [1.0] * len(datasets), data_of(**options), seed)


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


def epoch_of(mixture: Mixture, epoch: int) -> list[tuple[int, int]]:
    start = epoch * mixture.epoch_size
    return [mixture.at(position) for position in range(start, start + mixture.epoch_size)]


def test_order_is_a_pure_function_of_seed_epoch_and_index():
    first, second = (mixture_of(Numbers(50), Numbers(30, "m"), seed=4) for _ in range(2))
    backwards = {position: second.at(position) for position in reversed(range(240))}
    assert [first.at(position) for position in range(240)] == [backwards[position] for position in range(240)]


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [epoch_of(mixture_of(Numbers(50), seed=seed), epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] != sorted(orders[0])


def test_order_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    epoch_of(mixture_of(Numbers(20)), 0)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_sees_each_sample_exactly_once(epoch):
    mixture = mixture_of(Numbers(37), Numbers(20, "m"))
    assert sorted(epoch_of(mixture, epoch)) == [(0, i) for i in range(37)] + [(1, i) for i in range(20)]


@pytest.mark.parametrize(
    ("weight", "times"),  # how often a sample is seen: how many samples are
    [(2, {2: 40}), (0.5, {1: 20}), (1.5, {1: 20, 2: 20}), (0.1, {1: 4}), (3, {3: 40})],
)
def test_a_weight_is_how_often_a_sample_is_seen(weight, times):
    mixture = mixture_of(Numbers(40), Numbers(10, "m"), weights=[weight, 1.0])
    for epoch in range(3):
        seen = Counter(epoch_of(mixture, epoch))
        assert Counter(count for (d, _), count in seen.items() if d == 0) == times
        assert [seen[1, i] for i in range(10)] == [1] * 10
    assert mixture.epoch_size == 40 * weight + 10


def test_a_part_of_a_dataset_is_another_one_each_epoch():
    mixture = mixture_of(Numbers(40), weights=[0.5])
    assert set(epoch_of(mixture, 0)) != set(epoch_of(mixture, 1))


def test_each_dataset_is_shuffled_by_itself():
    order = epoch_of(mixture_of(Numbers(40), Numbers(40, "m"), weights=[0.5, 0.5]), 0)
    assert {i for d, i in order if d == 0} != {i for d, i in order if d == 1}


def test_datasets_are_mixed_anew_each_epoch():
    mixture = mixture_of(Numbers(40), Numbers(40, "m"))
    turns = [[d for d, _ in epoch_of(mixture, epoch)] for epoch in (0, 1)]
    assert turns[0] != turns[1]
    assert all(0 < sum(some[:20]) < 20 for some in turns)  # both are in the first quarter


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_held_out_samples_are_never_trained_on(share):
    mixture = mixture_of(Numbers(1000), Numbers(500, "m"), share=share)
    held = set(mixture.held_out)
    trained = set(epoch_of(mixture, 0))
    assert not held & trained
    assert len(held) + len(trained) == 1500
    assert abs(len(held) - 1500 * share) < 4 * (1500 * share * (1 - share)) ** 0.5  # four standard deviations


def test_the_data_seed_alone_decides_what_is_held_out():
    held = [mixture_of(Numbers(300), share=0.2, seed=seed).held_out for seed in (0, 1, 2)]
    assert held[0] == held[1] == held[2]
    assert Mixture([Numbers(300)], [1.0], data_of(share=0.2, seed=1), seed=0).held_out != held[0]


def test_what_is_held_out_depends_on_a_samples_id_only():
    small = mixture_of(Numbers(100), share=0.2).held_out
    large = mixture_of(Numbers(5, "other"), Numbers(400), share=0.2).held_out
    assert [i for d, i in large if d == 1 and i < 100] == [i for _, i in small]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_and_everything_can_be_held_out(share):
    assert {is_held_out(f"{i}", share, 0) for i in range(200)} == {share == 1.0}


def test_a_limit_takes_some_held_out_samples_and_trains_on_none():
    everything = mixture_of(Numbers(500), share=0.4)
    limited = [mixture_of(Numbers(500), share=0.4, limit=30, seed=seed) for seed in (0, 1)]
    assert limited[0].held_out == limited[1].held_out
    assert len(limited[0].held_out) == 30
    assert set(limited[0].held_out) < set(everything.held_out)
    assert limited[0].held_out != everything.held_out[:30]
    assert limited[0].train[0].equal(everything.train[0])


def test_a_dataset_that_is_all_held_out_is_an_error():
    with pytest.raises(DataError, match=r"data\.train\.1: all of its 3 samples are held out for validation"):
        mixture_of(Numbers(900), Numbers(3, "m"), share=0.999, seed=0)


def test_a_weight_that_leaves_no_sample_is_an_error():
    with pytest.raises(DataError, match=r"data\.train\.1\.weight=0\.01 of 40 samples is not one; raise it"):
        mixture_of(Numbers(40), Numbers(40, "m"), weights=[1.0, 0.01])


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
    assert (step.rows, step.num_samples, step.num_tokens, step.skipped) == ([], 0, 0, {"gone": 4})


def test_held_out_steps_cover_every_held_out_sample():
    mixture = mixture_of(Numbers(200), share=0.3)
    held_out = HeldOut(mixture, preparation(), Packing(2, 100, 256), 16)
    seen = [shade for n in range(len(held_out)) for shade in shades(held_out[n])]
    assert seen == [index for _, index in mixture.held_out]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(workers):
    steps = steps_of(mixture_of(Numbers(40, broken=BROKEN)), 8, 60)
    alone, helped = (list(load(steps, count)) for count in (0, workers))
    assert len(alone) == len(helped) == 8
    for mine, other in zip(alone, helped, strict=True):
        assert_same(mine, other)


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
