from collections import Counter

import pyarrow
import pytest

from nanovlm.data.ranks import ALONE, Ranks
from nanovlm.data.shards import BEGINNING, Place, read_shards


class Numbered:
    """Shards of these sizes, whose rows are numbers; remembers which were opened, and which were only measured."""

    def __init__(self, *sizes: int, sized: bool = True, batch: int = 4) -> None:
        self.sizes, self.sized, self.batch = sizes, sized, batch
        self.opened: list[int] = []
        self.measured: list[int] = []

    def __len__(self) -> int:
        return len(self.sizes)

    def size(self, shard: int) -> int:
        assert self.sized
        self.measured.append(shard)
        return self.sizes[shard]

    def batches(self, shard: int):
        self.opened.append(shard)
        first = sum(self.sizes[:shard])
        table = pyarrow.table({"n": list(range(first, first + self.sizes[shard]))})
        return (table.slice(start, self.batch) for start in range(0, len(table), self.batch))


def numbers(shards: Numbered, ranks: Ranks = ALONE, place: Place = BEGINNING, stop: int = 0) -> list[int]:
    found = []
    for number, table, _ in read_shards(shards, ranks, place, stop):
        assert table.to_pylist() == [{"n": number}]
        found.append(number)
    return found


UNEVEN = [9, 3, 1, 12, 5, 8, 2]


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("count", range(1, 8))
def test_ranks_take_every_row_exactly_once(count, world, sized):
    shards = Numbered(*UNEVEN[:count], sized=sized)
    parts = [numbers(shards, Ranks(rank, world)) for rank in range(world)]
    assert Counter(number for part in parts for number in part) == Counter(range(sum(shards.sizes)))
    assert all(part == sorted(part) for part in parts)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_no_rank_has_much_more_than_another(world):
    """Else its share of each step would take it through fewer passes: seven whole shards are not divided by five."""
    shards = Numbered(*[100] * 7)
    sizes = [len(numbers(shards, Ranks(rank, world))) for rank in range(world)]
    assert max(sizes) - min(sizes) <= 1


def test_a_rank_opens_its_own_shards_and_those_left_over():
    for rank, own in enumerate([{0, 3}, {1, 4}, {2, 5}]):
        shards = Numbered(*UNEVEN)
        numbers(shards, Ranks(rank, 3))
        assert set(shards.opened) == own | {6}
        assert set(shards.measured) == set(range(6)) - own  # what stands before its rows has to be counted


def test_without_sizes_each_rank_reads_everything():
    shards = Numbered(*UNEVEN[:6], sized=False)
    assert numbers(shards, Ranks(1, 3)) == list(range(1, sum(UNEVEN[:6]), 3))
    assert shards.opened == list(range(6))


@pytest.mark.parametrize("stop", [1, 4, 9, 10, 30, 100])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_first_rows_are_divided_too(world, stop):
    shards = Numbered(*UNEVEN)
    parts = [numbers(shards, Ranks(rank, world), stop=stop) for rank in range(world)]
    assert sorted(number for part in parts for number in part) == list(range(min(stop, sum(UNEVEN))))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("batch", [1, 4, 100])
@pytest.mark.parametrize("ranks", [ALONE, Ranks(0, 2), Ranks(1, 2), Ranks(2, 3), Ranks(4, 5), Ranks(1, 9)], ids=str)
def test_from_any_place_the_rest_follows_and_no_earlier_shard_is_opened(ranks, batch):
    whole = list(read_shards(Numbered(*UNEVEN, 0, 6, batch=batch), ranks))
    for n, (_, _, place) in enumerate(whole):
        again = Numbered(*UNEVEN, 0, 6, batch=batch)
        assert numbers(again, ranks, place) == [number for number, _, _ in whole[n + 1 :]]
        assert all(shard >= place.shard for shard in again.opened)


def test_a_shard_that_was_read_to_its_end_is_not_opened_again():
    for number, _, place in list(read_shards(Numbered(3, 3, 3))):
        again = Numbered(3, 3, 3)
        numbers(again, place=place)
        assert again.opened == list(range((number + 1) // 3, 3))


def test_a_place_at_a_shards_end_is_the_next_ones_beginning():
    """As it is told where nobody knew yet that the shard had no more rows."""
    assert numbers(Numbered(3, 3), place=Place(0, 3, 3)) == [3, 4, 5]
