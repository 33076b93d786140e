import pytest
import torch
from tiny import tiny_model
from torch import nn

from nanovlm.seeding import derived_seed, generator, seeded


def draw(*parts: object) -> list[float]:
    return torch.rand(4, generator=generator(*parts)).tolist()


@pytest.fixture
def untouched():
    """Torch's global generator is after the test what it was before."""
    before = torch.get_rng_state()
    yield
    assert torch.get_rng_state().equal(before)


PURPOSES = [(0,), (1,), (0, "projector"), (0, "vision_encoder"), (1, "projector"), (0, 0), (0, 1), (0, 0, 0)]


def test_each_purpose_has_a_seed_of_its_own():
    assert len({derived_seed(*parts) for parts in PURPOSES}) == len(PURPOSES)


def test_a_seed_is_the_same_in_every_process_and_version():
    """Runs are repeated years later: these numbers are part of the format."""
    assert derived_seed(0, "projector") == 7962735446921301469
    assert derived_seed(0) == 4761921975702974394


def test_seeds_fill_their_range_evenly():
    seeds = [derived_seed(i, "even") / 2**63 for i in range(2000)]
    assert all(0 <= seed < 1 for seed in seeds)
    quarters = [sum(q <= 4 * seed < q + 1 for seed in seeds) for q in range(4)]
    assert all(400 < count < 600 for count in quarters)  # 5 standard deviations


def test_what_is_drawn_is_the_purposes_alone(untouched):
    assert draw(0, "a") == draw(0, "a")
    assert draw(0, "a") != draw(0, "b")
    assert draw(0, "a") != draw(1, "a")


def test_a_block_draws_the_same_whatever_the_global_generator_does(untouched):
    with torch.random.fork_rng():
        drawn = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            with seeded(0, "block"):
                drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1]


def test_after_a_block_the_global_generator_goes_on_as_if_nothing_had_been():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        expected = torch.rand(2).tolist()
        torch.manual_seed(5)
        first = torch.rand(1).tolist()
        with seeded(0, "block"):
            torch.rand(100)
            torch.manual_seed(7)  # nor does a plugin that sees to its own randomness
        assert first + torch.rand(1).tolist() == expected


def test_the_global_generator_is_restored_after_an_error_too(untouched):
    with pytest.raises(ZeroDivisionError), seeded(0, "block"):
        torch.rand(1)
        raise ZeroDivisionError


def test_a_block_within_a_block_changes_nothing_outside_it():
    def draw_twice(between) -> list[float]:
        with seeded(0, "outer"):
            first = torch.rand(1)
            between()
            return [float(first), float(torch.rand(1))]

    def inner():
        with seeded(0, "inner"):
            torch.rand(10)

    assert draw_twice(inner) == draw_twice(lambda: None)


def test_a_plain_linear_draws_the_same_whatever_is_built_beside_it(untouched):
    def projector(*before: nn.Module | type) -> torch.Tensor:
        with seeded(0, "vision_encoder"):
            for build in before:
                build(3, 5)
        with seeded(0, "projector"):
            return nn.Linear(4, 4).weight

    assert projector().equal(projector(nn.Linear, nn.Embedding))


def test_models_that_differ_in_one_component_share_the_weights_of_the_others(untouched):
    model = tiny_model().state_dict()
    variants = {
        "vision_encoder.": "vision_encoder.num_hidden_layers=1",
        "projector.": "projector.factor=1",
        "language_decoder.": "language_decoder.num_hidden_layers=1",
    }
    for changed, override in variants.items():
        other = tiny_model(override).state_dict()
        assert other.keys() != model.keys() or any(other[name].shape != model[name].shape for name in model)
        assert all(other[name].equal(model[name]) for name in model if not name.startswith(changed))


def test_another_seed_draws_other_weights_for_every_component():
    first, second = tiny_model(seed=0), tiny_model(seed=1)
    for role in ("vision_encoder", "projector", "language_decoder"):
        pairs = zip(getattr(first, role).parameters(), getattr(second, role).parameters(), strict=True)
        assert any(not a.equal(b) for a, b in pairs)
