import random
from collections import Counter

import numpy as np
import pytest
from nanovlm_plugins.shapes import COLOURS, KINDS, PLACES

from nanovlm import Sample

SIDE = 32
ANSWERS = {"colour": {*COLOURS}, "kind": {*KINDS}, "place": {*PLACES}, "number": {"1", "2", "3"}}


@pytest.fixture(scope="module")
def shapes(registries):
    def shapes(split: str, size: int = 1000, **options):
        options = {f"{split}_size": size, "image_size": SIDE} | options
        config = registries.datasets.configure("shapes", options)
        return registries.datasets.find("shapes").cls(config, split)

    return shapes


def seen(sample: Sample) -> frozenset[tuple[str, str, str]]:
    """(place, colour, kind) of each shape, found in the pixels alone."""
    pixels = np.asarray(sample.images[0])
    found = set()
    for quarter, place in enumerate(PLACES):
        row, column = quarter // 2 * SIDE // 2, quarter % 2 * SIDE // 2
        part = pixels[row : row + SIDE // 2, column : column + SIDE // 2]
        for name, colour in COLOURS.items():
            mask = (part == colour).all(axis=-1)
            if mask.any():
                found.add((place, name, kind_of(mask)))
    return frozenset(found)


def kind_of(mask: np.ndarray) -> str:
    """By how wide the first row is: a square's is whole, a circle's a part, a triangle's hardly anything."""
    rows, columns = np.nonzero(mask)
    width = columns.max() - columns.min() + 1
    share = mask.sum() / (width * (rows.max() - rows.min() + 1))
    return "square" if share > 0.95 else "circle" if share > 0.68 else "triangle"


def asked(sample: Sample) -> str:
    """The answer, worked out from the picture and the words of the question."""
    question = sample.turns[0].user
    if question == "How many shapes?":
        return str(len(seen(sample)))
    (subject,) = [shape for shape in seen(sample) if question.rstrip("?").split()[-1] in shape]
    position = {"What colour": 1, "What is": 2, "Where is": 0}
    (part,) = [part for words, part in position.items() if question.startswith(words)]
    return subject[part]


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_answer_can_be_seen_in_the_picture(shapes, split):
    dataset = shapes(split, 300)
    assert [asked(dataset[i]) for i in range(300)] == [dataset[i].turns[0].assistant for i in range(300)]


def test_no_two_shapes_share_a_quarter_a_kind_or_a_colour(shapes):
    for sample in (shapes("train")[i] for i in range(300)):
        for values in zip(*seen(sample), strict=True):
            assert len(set(values)) == len(values)


def test_a_sample_is_a_function_of_seed_split_and_index(shapes):
    dataset = shapes("train")
    random.seed(1)
    before = random.getstate()
    large, again = shapes("train", 50_000), [dataset[i] for i in (7, 3, 7)]
    assert random.getstate() == before
    assert [sample.turns for sample in again] == [large[i].turns for i in (7, 3, 7)]
    assert [sample.images[0].tobytes() for sample in again] == [large[i].images[0].tobytes() for i in (7, 3, 7)]


def test_seed_split_and_index_all_matter(shapes):
    datasets = [shapes("train"), shapes("train", seed=1), shapes("test")]
    pictures = [dataset[i].images[0].tobytes() for dataset in datasets for i in range(100)]
    assert len(set(pictures)) > 0.95 * len(pictures)  # at 32 pixels, two may look the same by chance


def test_train_and_test_have_no_arrangement_in_common(shapes):
    train, test = ({seen(dataset[i]) for i in range(2000)} for dataset in (shapes("train"), shapes("test")))
    assert len(train) > 300
    assert len(test) > 30
    assert not train & test


def test_the_test_arrangements_are_the_same_for_every_seed(shapes):
    train = {seen(sample) for sample in map(shapes("train", seed=1).__getitem__, range(2000))}
    assert not train & {seen(sample) for sample in map(shapes("test", seed=2).__getitem__, range(1000))}


@pytest.fixture(scope="module")
def asked_and_answered(shapes):
    """(category, answer) of many samples, by split."""
    samples = {split: map(shapes(split, 4000, image_size=16).__getitem__, range(4000)) for split in ("train", "test")}
    return {split: [(each.category, each.turns[0].assistant) for each in some] for split, some in samples.items()}


def chi_squared(counts: Counter) -> float:
    expected = counts.total() / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts.values())


UNLIKELY = 20  # with three degrees of freedom, one time in 5,000


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("category", ANSWERS)
def test_every_answer_to_a_question_is_equally_likely(asked_and_answered, split, category):
    answers = Counter(answer for asked, answer in asked_and_answered[split] if asked == category)
    assert set(answers) == ANSWERS[category]
    assert chi_squared(answers) < UNLIKELY


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_kind_of_question_is_equally_likely(asked_and_answered, split):
    categories = Counter(category for category, _ in asked_and_answered[split])
    assert set(categories) == set(ANSWERS)
    assert chi_squared(categories) < UNLIKELY
