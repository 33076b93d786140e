from itertools import count, islice
from threading import enumerate as enumerate_threads

import pytest
import torch
from PIL import Image
from test_loader import BROKEN, assert_same, data_of, preparation, shades
from tiny import tiny_experiment

from nanovlm import ConfigError, DataError, Dataset, Sample, SkipSample, Turn, train
from nanovlm.data import stream
from nanovlm.data.dataset import Row
from nanovlm.data.loader import Packing
from nanovlm.data.mixture import is_held_out
from nanovlm.data.ranks import Ranks
from nanovlm.data.stream import Stream, StreamedHeldOut, StreamedSteps, ahead
from nanovlm.data.workers import load

WINDOW = 16


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch):
    monkeypatch.setattr(stream, "WINDOW", WINDOW)


class Counted(Dataset):
    """A stream whose row ``i`` is the number i; its sample has a picture of that shade."""

    streaming = True

    def __init__(self, size: int, broken: dict[int, str] | None = None) -> None:
        self.size, self.broken, self.passes = size, broken or {}, 0

    def stream(self):
        self.passes += 1
        return (Row(f"n-{i}", i, "odd" if i % 2 else "even") for i in range(self.size))

    def sample(self, row: Row) -> Sample:
        fault = self.broken.get(row.content)
        if fault == "gone":
            raise SkipSample("gone")
        picture = b"no picture" if fault == "undecodable picture" else Image.new("L", (4, 4), row.content)
        answer = {"no answer": " ", "too long": "1" * 100}.get(fault, str(row.content))
        return Sample([picture] * (3 if fault == "too many pictures" else 1), [Turn("Which?", answer)], row.id)


def stream_of(size: int = 50, seed: int = 0, broken: dict[int, str] | None = None, **options) -> Stream:
    return Stream(Counted(size, broken), data_of(**options), seed)


def steps_of(source: Stream, samples_per_step: int = 8, samples: int = 100) -> StreamedSteps:
    return StreamedSteps(source, preparation(), Packing(2, 100, 256), samples_per_step, samples)


def numbers(source: Stream, count: int) -> list[int]:
    return [row.content for row, _ in islice(source.rows(), count)]


def test_windows_are_permuted_and_whole():
    seen = numbers(stream_of(50), 50)
    windows = [seen[start : start + WINDOW] for start in range(0, 50, WINDOW)]
    for n, window in enumerate(windows):
        assert sorted(window) == list(range(50))[n * WINDOW : (n + 1) * WINDOW]
        assert window != sorted(window) or len(window) < 3
    assert [number - WINDOW for number in windows[1]] != windows[0]  # each has a permutation of its own


def test_at_its_end_it_begins_again_in_another_order():
    source = stream_of(40)
    seen = numbers(source, 120)
    passes = [seen[:40], seen[40:80], seen[80:]]
    assert all(sorted(one) == list(range(40)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert source.dataset.passes == 3


def test_order_is_the_seeds_alone():
    assert numbers(stream_of(seed=1), 100) == numbers(stream_of(seed=1), 100)
    assert numbers(stream_of(seed=1), 100) != numbers(stream_of(seed=2), 100)
    before = torch.get_rng_state()
    numbers(stream_of(), 100)
    assert torch.get_rng_state().equal(before)


def test_the_held_out_are_disjoint_and_fixed_by_the_data_seed():
    sources = [stream_of(200, seed, share=0.2, limit=1000) for seed in (0, 1)]
    held = [[row.content for row in source.held_out()] for source in sources]
    assert held[0] == held[1] == [i for i in range(200) if is_held_out(f"n-{i}", 0.2, 0)]
    trained = set(numbers(sources[0], 200 - len(held[0])))
    assert len(held[0]) > 20
    assert trained == set(range(200)) - set(held[0])
    assert not set(numbers(sources[0], 1000)) & set(held[0])  # in later passes, too


def test_a_limit_takes_the_first_held_out_rows_and_reads_no_further():
    class Endless(Counted):
        def stream(self):
            i = 0
            while True:
                yield Row(f"n-{i}", i)
                i += 1

    source = Stream(Endless(0), data_of(share=0.5, limit=5), 0)
    assert [row.content for row in source.held_out()] == [i for i in range(50) if is_held_out(f"n-{i}", 0.5, 0)][:5]
    assert len(numbers(source, 100)) == 100


def test_a_row_that_comes_twice_is_held_out_once():
    class Twice(Counted):
        def stream(self):
            return (row for row in super().stream() for _ in range(2))

    source = Stream(Twice(60), data_of(share=0.3, limit=12), 0)
    assert [row.content for row in source.held_out()] == [i for i in range(60) if is_held_out(f"n-{i}", 0.3, 0)][:12]


def test_without_a_share_nothing_is_read_for_validation():
    source = stream_of(share=0.0, limit=10)
    assert len(StreamedHeldOut(source, preparation(), Packing(2, 100, 256), 4)) == 0
    assert source.dataset.passes == 0


def test_held_out_steps_cover_every_held_out_row_each_time():
    source = stream_of(200, share=0.3, limit=40)
    held_out = StreamedHeldOut(source, preparation(), Packing(2, 100, 256), 16)
    assert len(held_out) == 3
    for _ in range(2):
        seen = [shade for step in load(held_out, 0) for shade in shades(step)]
        assert seen == [row.content for row in source.held_out()]


def test_reading_ahead_changes_nothing():
    assert list(ahead(iter(range(100)), 3)) == list(range(100))
    assert list(ahead([], 3)) == []


def test_reading_ahead_goes_so_far_and_ends_with_whoever_asked():
    taken = []
    things = ahead((taken.append(i) or i for i in count()), 3)
    assert next(things) == 0
    reader = next(thread for thread in enumerate_threads() if thread.name.endswith("(take)"))
    things.close()
    reader.join(timeout=10)
    assert not reader.is_alive()
    assert len(taken) <= 1 + 3 + 1  # the one asked for, three in the queue, one in hand


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_is_closed_ends_its_reader_and_what_it_reads_from(workers):
    ended = []

    class Watched(Counted):
        def stream(self):
            try:
                yield from super().stream()
            finally:
                ended.append(self.passes)

    made = load(steps_of(Stream(Watched(500), data_of(), 0), samples=400), workers)
    next(made)
    assert not ended
    made.close()
    assert ended == [1]
    assert not [thread for thread in enumerate_threads() if thread.name.endswith("(take)")]


def test_what_goes_wrong_ahead_is_raised_where_it_would_have_been():
    def things():
        yield 1
        raise DataError("source: gone")

    taken = ahead(things(), 3)
    assert next(taken) == 1
    with pytest.raises(DataError, match=r"^source: gone$"):
        next(taken)


def test_steps_are_the_order_in_pieces():
    steps = steps_of(stream_of(50), 8, 20)
    made = list(load(steps, 0))
    assert len(steps) == 3
    assert [step.num_samples for step in made] == [8, 8, 4]
    assert [shade for step in made for shade in shades(step)] == numbers(stream_of(50), 20)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(workers):
    alone, helped = (list(load(steps_of(stream_of(50, broken=BROKEN)), count)) for count in (0, workers))
    assert len(alone) == len(helped) == 13
    for mine, other in zip(alone, helped, strict=True):
        assert_same(mine, other)


def test_broken_samples_make_a_step_smaller_and_shift_nothing():
    whole, broken = (list(load(steps_of(stream_of(50, broken=faults)), 0)) for faults in ({}, BROKEN))
    for good, worse in zip(whole, broken, strict=True):
        assert shades(worse) == [shade for shade in shades(good) if shade not in BROKEN]
        assert worse.num_samples + worse.skipped.total() == good.num_samples
    tally = sum((step.tally for step in broken), start=broken[0].tally.__class__())
    assert tally["data.train.0, subset 'even'", "gone"] == 2  # row 8, in two passes
    assert sum(count for (_, reason), count in tally.items() if not reason) == sum(step.num_samples for step in broken)


def test_the_fingerprint_tells_rows_apart_and_not_their_order():
    def fingerprint(**options) -> bytes:
        return b"".join(stream_of(**options).fingerprint())

    assert fingerprint() == fingerprint(seed=1)
    others = [fingerprint(broken={3: "gone"}), fingerprint(size=10), fingerprint(share=0.1, limit=5)]
    assert len({fingerprint(), *others}) == 4


def test_the_fingerprint_of_the_order_is_the_seeds_and_the_ranks():
    orders = [stream_of(seed=seed).fingerprint_of_order(Ranks(0, world)) for seed, world in ((0, 1), (1, 1), (0, 2))]
    assert len(set(orders)) == 3
    assert stream_of().fingerprint_of_order(Ranks(1, 2)) == orders[2]


def test_a_stream_that_is_all_held_out_is_an_error():
    with pytest.raises(DataError, match=r"data\.train\.0: all of the stream is held out for validation; lower"):
        numbers(stream_of(5, share=1.0, limit=5), 1)


PLUGIN = """
from PIL import Image
from nanovlm import Benchmark, ComponentConfig, DataError, Sample, Turn, hookimpl
from nanovlm.data.dataset import Row

class River(Benchmark):
    class Config(ComponentConfig):
        size: int = 20
        dam: int = 100
    streaming = True
    def __init__(self, config, split):
        self.config = config
    def stream(self):
        for i in range(self.config.size):
            if i == self.config.dam:
                raise DataError("source: the water is gone")
            yield Row(f"river-{i}", i)
    def sample(self, row):
        return Sample([Image.new("L", (4, 4), 10 * row.content)], [Turn("Which?", f"{row.content}")], row.id)

@hookimpl
def register_datasets(register):
    register("river", River)
"""


@pytest.fixture
def run(tmp_path):
    """``run(*overrides)`` trains the tiny experiment on a stream of twenty rows; its summary, losses and data order."""
    (tmp_path / "river.py").write_text(PLUGIN)

    def run(*overrides: str, number: int = 0) -> tuple:
        folder = tmp_path / f"run-{number}"
        chosen = tiny_experiment("data.train=[{name: river}]", *overrides)
        summary = train(chosen, folder, plugin_files=[str(tmp_path / "river.py")])
        kept = {key: summary.get(key) for key in ("steps", "samples", "tokens", "validation_loss", "benchmarks")}
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        losses = [line.partition('"loss": ')[2].partition(",")[0] for line in lines if '"loss"' in line]
        provenance = (folder / "provenance.json").read_text()
        return kept, losses, provenance.partition('"data_order": ')[2].partition(",")[0]

    return run


def test_the_same_run_twice_is_the_same_bit_for_bit(run):
    share = ("training.steps=5", "data.validation.share=0.2", "data.validation.limit=4", "data.validation.every=2")
    first, again = (run(*share, number=n) for n in range(2))
    helped = run(*share, "data.workers=2", number=2)
    other = run(*share, "seed=1", number=3)
    assert first == again == helped
    assert len(first[1]) == 5
    assert first[0]["samples"] == 40  # more than two passes
    assert first[0]["validation_loss"] > 0
    assert other[1] != first[1]
    assert other[2] != first[2]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["training.epochs=2"],
            "training.epochs=2: river is a stream and has no length; set training.steps or training.samples or "
            "training.flops instead",
        ),
        (
            ["data.train=[{name: shapes, train_size: 8}, {name: river}]"],
            "data.train.1: river is a stream and has no length, so it cannot be mixed with others; "
            "let it stand alone, or do not stream it",
        ),
        (
            ["data.train.0.weight=2.0"],
            "data.train.0.weight=2.0: river is a stream and has no length, so nothing is there to weigh; "
            "leave the weight out",
        ),
        (
            ["data.train.0.size=0"],
            "data.train.0: river has no sample in its train split; `nanovlm list river` shows its options",
        ),
        (
            ["data.validation.share=1"],
            "data.validation.share=1: all of the stream is held out for validation; lower it",
        ),
        (
            ["data.validation.share=0.1", "data.validation.limit=0"],
            "data.validation.limit=0: river is a stream and has no length, so all of its held-out samples cannot be "
            "awaited; set a limit, or data.validation.share=0",
        ),
        (["data.train.0.dam=12"], "data.train.0: source: the water is gone"),
        (["benchmarks=[river]"], "benchmarks.0: river is a stream, and a benchmark has a number of questions"),
    ],
    ids=["epochs", "mixed", "weight", "empty", "share", "limit", "breaks off", "benchmark"],
)
def test_what_a_stream_cannot_do_is_said_at_once(run, tmp_path, overrides, message):
    with pytest.raises((ConfigError, DataError)) as caught:
        run(*overrides)
    assert str(caught.value) == message
    if "dam=12" not in overrides[0]:  # which is further on than the first row
        assert not (tmp_path / "run-0").exists()
