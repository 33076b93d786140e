from collections import Counter

import pytest
import torch
from numbered import Numbers, Parted, data_of, mixture_of

from nanovlm import DataError
from nanovlm.data.mixture import Mixture, is_held_out


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


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_a_subset_has_a_weight_of_its_own_within_its_datasets(weight):
    mixture = mixture_of(Parted(2.0, 0.5, 1.0), weights=[weight])
    for epoch in (0, 1):
        seen = Counter(index for _, index in epoch_of(mixture, epoch))
        assert [seen[i] for i in range(20)] == [2 * weight] * 20
        assert sum(seen[i] for i in range(20, 30)) == 5 * weight
        assert [seen[i] for i in range(30, 40)] == [weight] * 10
    halves = [{index for _, index in epoch_of(mixture_of(Parted(2.0, 0.5, 1.0)), epoch)} for epoch in (0, 1, 2)]
    assert len({frozenset(half & set(range(20, 30))) for half in halves}) > 1  # another half in another epoch


def test_subsets_of_equal_weight_change_no_order():
    assert epoch_of(mixture_of(Parted(1.0, 1.0, 1.0)), 3) == epoch_of(mixture_of(Numbers(40)), 3)


def test_held_out_samples_of_a_weighty_subset_are_not_trained_on():
    mixture = mixture_of(Parted(3.0, 0.5, 1.0), share=0.3)
    assert set(mixture.held_out) == set(mixture_of(Numbers(40), share=0.3).held_out)
    assert not set(mixture.held_out) & set(epoch_of(mixture, 0))


def test_a_subset_whose_weight_leaves_no_sample_is_an_error():
    with pytest.raises(DataError, match=r"\.weight=0\.01 of 10 samples \(b\) is not one; .* leave the subset out$"):
        mixture_of(Parted(1.0, 0.01, 1.0))
