import pytest

from nanovlm import Sample, Turn
from nanovlm.evaluation.controls import shuffled, without_images


def samples_with(counts: list[int]) -> list[Sample]:
    """Samples with so many pictures each; a picture is the name of its owner."""
    return [
        Sample([f"{i}.{n}" for n in range(count)], [Turn("<image>" * count + "?", f"{i}")], f"{i}", ["a"], "b")
        for i, count in enumerate(counts)
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("counts", [[1] * 40, [1, 2, 1, 2, 0, 0, 3, 3, 3], [1, 1]], ids=["one each", "mixed", "two"])
def test_nobody_gets_its_own_picture(counts, seed):
    samples = samples_with(counts)
    result = shuffled(samples, seed)
    for before, after in zip(samples, result, strict=True):
        assert (after.id, after.turns, after.choices, after.category) == (
            before.id, before.turns, before.choices, before.category,
        )  # fmt: skip
        assert len(after.images) == len(before.images)
        assert not set(after.images) & set(before.images)
    everyone = [sorted(image for each in some for image in each.images) for some in (samples, result)]
    assert everyone[0] == everyone[1]


def test_the_shuffle_is_the_seeds():
    orders = [[each.images for each in shuffled(samples_with([1] * 40), seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_one_picture_alone_has_nobody_to_swap_with():
    (after,) = shuffled(samples_with([1]), 0)
    assert after.images == ["0.0"]


def test_without_pictures_there_are_no_marks_either():
    for before, after in zip(samples_with([0, 1, 3]), without_images(samples_with([0, 1, 3])), strict=True):
        assert (after.images, after.turns) == ([], [Turn("?", before.turns[0].assistant)])
        assert after.id == before.id


def test_a_mark_in_a_sample_that_never_had_pictures_stays():
    sample = Sample([], [Turn("Write <image>", "<image>")], "x")
    assert without_images([sample]) == [sample]
