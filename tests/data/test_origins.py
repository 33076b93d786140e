from collections import Counter

import pytest
import torch
from numbered import Numbers, Parted, mixture_of
from test_loader import steps_of

from nanovlm.data.filling import Filling
from nanovlm.data.loader import Packing
from nanovlm.data.origins import (
    added,
    dataset_of,
    losses_by_sample,
    mean_by_dataset,
    read_losses,
    samples_by_dataset,
    write_losses,
)
from nanovlm.data.tally import Tally
from nanovlm.errors import DataError

FILLING = Filling((200, 400), 60, 64, varlen=False)


def mixed(**options):
    return steps_of(mixture_of(Numbers(30), Parted(1.0, 1.0, 1.0), **options), 35, 70)


@pytest.mark.parametrize("filling", [None, FILLING])
def test_a_rows_losses_are_added_up_by_sample(filling):
    steps = mixed()
    steps.packing = Packing(2, 400, 256, filling)
    total = {}
    expected = Counter()
    for row in steps[0].rows:
        losses = torch.randn(row.num_targets)
        total = added(total, losses_by_sample(row, losses))
        ends = row.segments.cu_seqlens.tolist()
        for slot, loss in zip(row.target_slots.tolist(), losses.tolist(), strict=True):  # one by one
            (sample,) = (s for s in range(row.num_samples) if ends[s] <= slot < ends[s + 1])
            expected[row.origins[sample], row.ids[sample]] += loss
            expected[row.origins[sample], row.ids[sample], "targets"] += 1
    assert {origin for origin, _ in total} == {"data.train.0", *(f"data.train.1, subset '{name}'" for name in "abc")}
    for key, (loss, count) in total.items():
        assert loss == pytest.approx(expected[key], abs=1e-4)
        assert count == expected[*key, "targets"]


def test_a_datasets_mean_is_over_the_targets_of_all_its_subsets():
    losses = {
        ("data.train.1, subset 'a'", "1"): (6.0, 2), ("data.train.0", "2"): (2.0, 3), ("data.train.0", "3"): (3.0, 2),
        ("data.train.1, subset 'b, c'", "1"): (2.0, 6), ("data.train.2", "1"): (0.0, 0),
    }  # fmt: skip
    assert mean_by_dataset(losses) == {"data.train.0": 1.0, "data.train.1": 1.0}


def test_the_mean_of_all_is_the_rows_own():
    row = mixed()[0].rows[0]
    losses = torch.rand(row.num_targets)
    sums = losses_by_sample(row, losses).values()
    assert sum(loss for loss, _ in sums) / sum(count for _, count in sums) == pytest.approx(float(losses.mean()))


def test_a_row_travels_with_its_origins():
    row = mixed()[0].rows[0]
    assert len(row.origins) == row.num_samples
    assert row.to("cpu").origins == row.origins


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.5, 3.0]])
def test_over_an_epoch_each_dataset_gives_its_weight(weights):
    mixture = mixture_of(Numbers(30), Parted(1.0, 2.0, 1.0), weights=weights)
    steps = steps_of(mixture, 16, mixture.epoch_size)
    tally = Tally()
    for n in range(len(steps)):
        tally.add(steps[n], last=n + 1 == len(steps))
    expected = {"data.train.0": 30 * weights[0], "data.train.1": 50 * weights[1]}
    assert samples_by_dataset(tally.origins) == expected
    parts = zip("abc", (20, 20, 10), strict=True)
    by_subset = {f"data.train.1, subset '{name}'": size * weights[1] for name, size in parts}
    assert tally.summary()["given"] == {"data.train.0": 30 * weights[0], **by_subset}


def test_what_was_skipped_was_not_given():
    faults = dict.fromkeys(range(20, 30), "gone") | {0: "too long"}  # all of subset b
    tally = Tally()
    tally.add(steps_of(mixture_of(Parted(1.0, 1.0, 1.0, broken=faults)), 40, 40)[0], last=True)
    assert samples_by_dataset(tally.origins) == {"data.train.0": 29}
    assert [tally.summary()["given"][f"data.train.0, subset '{name}'"] for name in "abc"] == [19, 0, 10]


def test_a_name_tells_its_dataset():
    assert [dataset_of(name) for name in ("data.train.0", "data.train.12, subset 'a, b'")] == [
        "data.train.0",
        "data.train.12",
    ]


def test_losses_are_written_and_read_back(tmp_path):
    losses = {("data.train.0", "a"): (6.25, 2), ("data.train.1, subset 'b'", "a"): (1 / 3, 5)}
    write_losses(losses, tmp_path / "validation" / "3.jsonl")
    assert read_losses(tmp_path / "validation" / "3.jsonl") == losses
    assert read_losses(tmp_path / "validation" / "4.jsonl") == {}


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x1e", "\n", "\r"])
def test_an_id_may_hold_whatever_ends_a_line_elsewhere(mark, tmp_path):
    losses = {("data.train.0", f"a{mark}b"): (6.25, 2), ("data.train.0", "c"): (1.0, 1)}
    write_losses(losses, tmp_path / "3.jsonl")
    assert read_losses(tmp_path / "3.jsonl") == losses


@pytest.mark.parametrize(
    "line", ['{"origin": "x"}', '{"origin": "x", "id": "y", "loss": null, "targets": 3}', "[]", "torn"]
)
def test_damaged_losses_are_named(line, tmp_path):
    (tmp_path / "3.jsonl").write_text(line)
    with pytest.raises(DataError, match=r"3\.jsonl is damaged: remove it, and go on without what it held"):
        read_losses(tmp_path / "3.jsonl")
