import json
from collections import Counter
from itertools import islice

import pytest
from numbered import Numbers
from numbered import mixture_of as by_number
from test_loader import BROKEN, assert_same, data_of, preparation, shades, steps_of
from test_stream import WINDOW, Counted, stream_of
from test_stream import steps_of as steps_of_stream

from nanovlm import DataError
from nanovlm.data import stream
from nanovlm.data.dataset import Row
from nanovlm.data.loader import HeldOut, Packing, Step
from nanovlm.data.mixture import is_held_out
from nanovlm.data.ranks import ALONE, Ranks
from nanovlm.data.stream import Stream, StreamedHeldOut, StreamedSteps
from nanovlm.data.workers import load


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch):
    monkeypatch.setattr(stream, "WINDOW", WINDOW)


class Seekable(Counted):
    """The same rows, read from any of them on; remembers which were read, and of which samples were made."""

    def __init__(self, size: int, broken: dict[int, str] | None = None) -> None:
        super().__init__(size, broken)
        self.read: list[int] = []
        self.made: list[int] = []

    def stream_from(self, state, ranks):
        for i in range((state or {"next": 0})["next"], self.size):
            if ranks.takes(i):
                self.read.append(i)
                yield Row(f"n-{i}", i), {"next": i + 1}

    def sample(self, row):
        self.made.append(row.content)
        return super().sample(row)


def kept(step: Step) -> tuple[int, dict]:
    """What a checkpoint would hold of where the next step begins."""
    return json.loads(json.dumps(step.position))


def resumed(steps: StreamedSteps, done: list[Step], n: int) -> StreamedSteps:
    """The steps of a process that begins anew after ``n`` steps."""
    return steps.resumed(n, kept(done[n - 1]) if n else None)


@pytest.mark.parametrize("cls", [Counted, Seekable])
@pytest.mark.parametrize("size", [50, 48, 5])  # with a last window that is smaller, none, and only one
def test_after_any_step_the_same_steps_follow(cls, size):
    """100 samples: two passes, or twenty."""
    new = lambda: steps_of_stream(Stream(cls(size, BROKEN), data_of(share=0.1), 0))  # noqa: E731
    whole = list(load(new(), 0))
    for n in range(len(whole) + 1):
        rest = list(load(resumed(new(), whole, n), 0))
        assert len(rest) == len(whole) - n
        for mine, other in zip(rest, whole[n:], strict=True):
            assert_same(mine, other)
            assert mine.position == other.position


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than this machine may have
@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 2), (2, 3), (3, 0), (2, 2)])
def test_another_number_of_workers_goes_on_with_the_same_steps(before, after):
    whole = list(load(steps_of_stream(stream_of(50, broken=BROKEN)), 0))
    for n in (1, 6, 9):
        loader = load(steps_of_stream(stream_of(50, broken=BROKEN)), before)
        done = list(islice(loader, n))  # more were read, and are lost
        loader.close()
        rest = list(load(resumed(steps_of_stream(stream_of(50, broken=BROKEN)), done, n), after))
        for mine, other in zip([*done, *rest], whole, strict=True):
            assert_same(mine, other)


def test_what_was_seen_is_not_read_again():
    whole = list(load(steps_of_stream(Stream(Seekable(200), data_of(), 0)), 0))
    seen = [shade for step in whole[:9] for shade in shades(step)]  # 72: four windows, and half of the fifth
    dataset = Seekable(200)
    rest = list(load(resumed(steps_of_stream(Stream(dataset, data_of(), 0)), whole, 9), 0))
    assert min(dataset.read) == 4 * WINDOW  # the window that was interrupted is put together again
    assert len(dataset.read) == len(set(dataset.read))
    assert not set(dataset.made) & set(seen)
    assert dataset.made == [shade for step in rest for shade in shades(step)]


def test_a_stream_without_states_of_its_own_makes_no_sample_again():
    class Watched(Counted):
        made = 0

        def sample(self, row):
            self.made += 1
            return super().sample(row)

    whole = list(load(steps_of_stream(stream_of(200)), 0))
    dataset = Watched(200)
    list(load(resumed(steps_of_stream(Stream(dataset, data_of(), 0)), whole, 9), 0))
    assert (dataset.passes, dataset.made) == (1, 100 - 72)


def test_a_position_is_the_last_window_and_not_a_history():
    steps = list(load(steps_of_stream(stream_of(50), samples=1000), 0))
    sizes = [len(json.dumps(step.position)) for step in steps]
    assert max(sizes) <= min(sizes) + 10


def parts_of(steps, world: int) -> list[list[Step]]:
    """What each rank makes of the same run."""
    return [list(load(steps(Ranks(rank, world)), 0)) for rank in range(world)]


def streamed(ranks: Ranks, size: int = 50, samples: int = 100, **options) -> StreamedSteps:
    return StreamedSteps(stream_of(size, **options), preparation(), Packing(2, 100, 256), 8, samples, ranks)


@pytest.mark.parametrize("world", [1, 2, 3, 5, 9])
def test_a_step_is_one_of_all_ranks_together(world):
    """Of a run of 100 samples in steps of 8, the last one of 4; nine ranks have none in some steps."""
    parts = parts_of(streamed, world)
    for step in zip(*parts, strict=True):
        sizes = [mine.num_samples for mine in step]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == (8 if step[0] is not parts[0][-1] else 4)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [37, 50, 64])
def test_a_pass_of_all_ranks_sees_every_row_once(world, size):
    source = stream_of(size, share=0.1)
    seen = Counter()
    for rank in range(world):
        for row, position in source.rows(Ranks(rank, world)):
            seen[row.content] += 1
            if _ends_a_pass(position, source, Ranks(rank, world)):
                break
    assert seen == Counter(i for i in range(size) if not is_held_out(f"n-{i}", 0.1, 0))


def _ends_a_pass(position, source: Stream, ranks: Ranks) -> bool:
    return position.taken == 0 and next(source.windows(ranks, position), None) is None


@pytest.mark.parametrize("world", [2, 3])
def test_each_rank_goes_on_where_it_was(world):
    for rank in range(world):
        ranks = Ranks(rank, world)
        whole = list(load(streamed(ranks), 0))
        for n in range(0, 13, 3):
            for mine, other in zip(load(resumed(streamed(ranks), whole, n), 0), whole[n:], strict=True):
                assert_same(mine, other)


@pytest.mark.parametrize("world", [1, 2, 3, 20])
def test_the_held_out_are_the_same_for_any_number_of_ranks_and_each_takes_its_share(world):
    def held_out(ranks: Ranks) -> StreamedHeldOut:
        source = stream_of(200, share=0.3, limit=40)
        return StreamedHeldOut(source, preparation(), Packing(2, 100, 256), 16, ranks)

    expected = [i for i in range(200) if is_held_out(f"n-{i}", 0.3, 0)][:40]
    parts = parts_of(held_out, world)
    assert [shade for step in zip(*parts, strict=True) for mine in step for shade in shades(mine)] == expected


def test_ranks_share_the_steps_of_samples_by_number_too():
    mixture = by_number(Numbers(50), share=0.2)
    whole = steps_of(mixture, 8, 60)
    held = HeldOut(mixture, preparation(), Packing(2, 100, 256), 8)
    for world in (1, 2, 3, 9):
        for these, cls in ((whole, "steps"), (held, "held out")):
            parts = []
            for rank in range(world):
                these.ranks = Ranks(rank, world)
                parts.append(list(load(these, 0)))
            these.ranks = ALONE
            assert all(len(part) == len(these) for part in parts), cls
            for n, step in enumerate(zip(*parts, strict=True)):
                assert [shade for mine in step for shade in shades(mine)] == shades(these[n])


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_by_number_begin_at_any_of_them(workers):
    whole = list(load(steps_of(by_number(Numbers(40)), 8, 60), 0))
    for n in (0, 3, 8):
        steps = steps_of(by_number(Numbers(40)), 8, 60).resumed(n)
        assert len(steps) == 8  # of the whole run
        rest = list(load(steps, workers))
        for mine, other in zip(rest, whole[n:], strict=True):
            assert_same(mine, other)


def test_a_rank_that_would_have_no_row_is_told_so():
    with pytest.raises(DataError) as caught:
        next(stream_of(3).rows(Ranks(3, 4)))
    assert str(caught.value) == (
        "data.train.0: of the stream nothing is left for rank 3 of 4: it has too few rows, or all of this rank's are "
        "held out for validation; train on fewer ranks, or lower data.validation.share"
    )


def test_another_number_of_ranks_is_told_that_it_cannot_go_on():
    done = list(load(streamed(Ranks(0, 2)), 0))
    with pytest.raises(DataError) as caught:
        resumed(streamed(ALONE), done, 4)
    assert str(caught.value) == (
        "data.train.0: this stream was read by 2 rank(s) up to step 4, and is divided anew for 1, so what was seen "
        "would come again; resume on 2, or begin a new run"
    )


def test_a_checkpoint_without_a_place_in_the_stream_is_told_so():
    with pytest.raises(DataError) as caught:
        streamed(ALONE).resumed(4, None)
    assert str(caught.value) == (
        "data.train.0: the checkpoint of step 4 does not say how far this stream was read, so its run was not trained "
        "on a stream; begin a new run, or set streaming to what it was"
    )
