import pytest

from nanovlm.data.ranks import ALONE, Ranks


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("n", [0, 1, 4, 7, 256])
def test_shares_are_neighbours_that_make_up_the_whole_evenly(world, n):
    shares = [Ranks(rank, world).share(range(n)) for rank in range(world)]
    assert [i for share in shares for i in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_each_of_endlessly_many_is_one_ranks(world):
    for number in range(20):
        assert [rank for rank in range(world) if Ranks(rank, world).takes(number)] == [number % world]


def test_alone_one_has_everything():
    assert ALONE.share([3, 1, 2]) == [3, 1, 2]
    assert ALONE.takes(7)


def test_the_last_step_of_a_run_is_shared_too():
    """Ten samples in steps of four."""
    shares = [[list(Ranks(rank, 3).positions(step, 4, 10)) for rank in range(3)] for step in range(3)]
    assert shares == [[[0], [1], [2, 3]], [[4], [5], [6, 7]], [[], [8], [9]]]
