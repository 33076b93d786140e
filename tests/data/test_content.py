"""Data that were edited under the same ids have another hash, whatever the run's seed."""

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from numbered import data_of, mixture_of
from PIL import Image

from nanovlm import DataError, Dataset, Sample, SkipSample, Turn
from nanovlm.data.content import READ, spread
from nanovlm.data.dataset import Row
from nanovlm.data.mixture import Mixture
from nanovlm.data.ranks import ALONE
from nanovlm.data.stream import Stream
from nanovlm.training.launch import fingerprint_data, fingerprint_order


class Listed(Dataset):
    """Samples from a list; an exception in it is raised. It counts what is read."""

    def __init__(self, samples: list) -> None:
        self.samples, self.read = samples, []

    def __len__(self) -> int:
        return len(self.samples)

    def id(self, index: int) -> str:
        found = self.samples[index]
        return found.id if isinstance(found, Sample) else f"{index}"

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        if isinstance(self.samples[index], Exception):
            raise self.samples[index]
        return self.samples[index]


class Streamed(Listed):
    streaming = True

    def stream(self):
        return (Row(self.id(i), i) for i in range(len(self.samples)))

    def sample(self, row: Row) -> Sample:
        return self[row.content]


def samples_of(count: int, images: list | None = None) -> list:
    return [Sample(list(images or []), [Turn("Which?", f"number {i}")], f"{i}") for i in range(count)]


def hash_of(samples: list, seed: int = 0, **options) -> str:
    return fingerprint_data(mixture_of(Listed(samples), seed=seed, **options))


def stream_hash(samples: list, seed: int = 0, **options) -> str:
    return fingerprint_data(Stream(Streamed(samples), data_of(**options), seed))


def with_answer(sample: Sample, answer: str) -> Sample:
    return replace(sample, turns=[Turn(sample.turns[0].user, answer)])


@pytest.fixture(params=[hash_of, stream_hash], ids=["by index", "a stream"])
def hashed(request):
    return request.param


@pytest.mark.parametrize("index", [0, 7, 19])
def test_an_edited_answer_is_another_hash(hashed, index):
    samples = samples_of(20)
    edited = [with_answer(sample, "edited") if i == index else sample for i, sample in enumerate(samples)]
    assert hashed(samples) == hashed(deepcopy(samples))
    assert hashed(samples) != hashed(edited)


def test_an_edited_question_is_another_hash(hashed):
    samples = samples_of(5)
    assert hashed(samples) != hashed([replace(samples[0], turns=[Turn("Who?", "number 0")]), *samples[1:]])


def test_words_that_move_from_one_turn_to_the_next_are_another_hash(hashed):
    assert hashed([Sample([], [Turn("ab", "c")], "0")]) != hashed([Sample([], [Turn("a", "bc")], "0")])


def test_ids_that_run_together_are_kept_apart(hashed):
    def named(*ids: str) -> list:
        return [Sample([], [Turn("a", "b")], name) for name in ids]

    assert hashed(named("a", "bc")) != hashed(named("ab", "c"))


def test_a_removed_row_is_another_hash(hashed):
    samples = samples_of(20)
    assert len({hashed(samples[:i] + samples[i + 1 :]) for i in range(20)} | {hashed(samples)}) == 21


def test_an_edited_picture_is_another_hash_in_whatever_form(hashed, tmp_path):
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "red")
    second.putpixel((3, 3), (255, 0, 1))
    files = [tmp_path / "first.png", tmp_path / "second.png"]
    for image, file in zip((first, second), files, strict=True):
        image.save(file)
    forms = (Image.open, Path.read_bytes, str, Path)
    for one, other in ((first, second), *([form(file) for file in files] for form in forms)):
        assert hashed(samples_of(3, [one])) != hashed(samples_of(3, [other]))
    assert hashed(samples_of(3, [first])) != hashed(samples_of(3, [first, first])) != hashed(samples_of(3))


def test_a_picture_of_another_size_with_the_same_pixels_is_another_hash(hashed):
    wide, high = Image.new("RGB", (8, 2), "red"), Image.new("RGB", (2, 8), "red")
    assert hashed(samples_of(3, [wide])) != hashed(samples_of(3, [high]))


def test_a_picture_that_is_a_file_is_not_decoded(hashed, tmp_path, monkeypatch):
    file = tmp_path / "picture.png"
    Image.new("L", (4, 4), 7).save(file)
    monkeypatch.setattr(Image.Image, "tobytes", lambda image: pytest.fail("decoded"))
    assert len({hashed(samples_of(3, [form(file)])) for form in (Image.open, Path.read_bytes, str, Path)}) == 1


def test_a_file_that_is_edited_in_place_is_another_hash(hashed, tmp_path):
    file = tmp_path / "picture.png"
    Image.new("L", (4, 4), 7).save(file)
    before = hashed(samples_of(3, [str(file)]))
    Image.new("L", (4, 4), 8).save(file)
    assert hashed(samples_of(3, [str(file)])) != before
    file.unlink()
    assert hashed(samples_of(3, [str(file)])) != before


def test_a_broken_sample_counts_by_its_reason(hashed):
    def broken(reason: str) -> list:
        return [*samples_of(3), SkipSample(reason)]

    assert hashed(broken("gone")) == hashed(broken("gone")) != hashed(broken("empty"))


def test_a_picture_that_cannot_be_read_stops_nothing(hashed):
    pictures = [Path("nowhere.png"), "\0", b"no picture", Image.new("L", (0, 0))]
    assert len({hashed(samples_of(3, [picture])) for picture in pictures}) == len(pictures)


def test_an_error_says_which_data_it_is_in(hashed):
    with pytest.raises(DataError, match=r"^data\.train\.0: the disk is gone"):
        hashed([*samples_of(3), DataError("the disk is gone")])


@pytest.mark.parametrize("count", [0, 1, 5, READ - 1, READ, READ + 1, 1000, 10**7])
def test_what_is_read_is_spread_evenly(count):
    chosen = spread(count)
    assert len(chosen) == min(count, READ)
    gaps = [end - start for start, end in pairwise([*chosen, count])]
    assert chosen[:1] == ([0] if count else [])
    assert all(count // len(chosen) <= gap <= -(-count // len(chosen)) for gap in gaps)


def test_only_so_many_samples_are_read(hashed):
    """The known limit: an edit elsewhere, under an old id, is not seen."""
    samples = samples_of(4 * READ)
    listed = Listed(samples)
    fingerprint_data(mixture_of(listed))
    assert listed.read == spread(len(samples))
    edited = [with_answer(samples[0], "edited"), *samples[1:]], [samples[0], with_answer(samples[1], "x"), *samples[2:]]
    assert [hashed(some) == hashed(samples) for some in edited] == [False, True]


def test_held_out_samples_are_among_what_is_hashed():
    samples = samples_of(40)
    mixture = mixture_of(Listed(samples), share=0.3)
    _, index = mixture.held_out[0]
    edited = [with_answer(sample, "edited") if i == index else sample for i, sample in enumerate(samples)]
    assert hash_of(samples, share=0.3) != hash_of(edited, share=0.3)


def test_the_runs_seed_is_no_part_of_the_data_and_decides_their_order(hashed):
    samples = samples_of(40)
    assert hashed(samples, seed=0, share=0.2, limit=5) == hashed(samples, seed=1, share=0.2, limit=5)
    for make in (mixture_of, lambda dataset, seed: Stream(dataset, data_of(), seed)):
        dataset = (Listed if make is mixture_of else Streamed)(samples)
        orders = [fingerprint_order("data", make(dataset, seed=seed), ALONE) for seed in (0, 0, 1)]
        assert orders[0] == orders[1] != orders[2]


def test_the_data_seed_decides_what_is_held_out_and_so_the_hash():
    samples = samples_of(40)
    hashes = {
        fingerprint_data(new(samples, data_of(share=0.2, limit=5, seed=seed)))
        for seed in (0, 1)
        for new in (
            lambda samples, data: Mixture([Listed(samples)], [1.0], data, 0),
            lambda samples, data: Stream(Streamed(samples), data, 0),
        )
    }
    assert len(hashes) == 4


class Lazy(Listed):
    """Opens its file when it is first read, as it must where worker processes read it."""

    file = None

    def __getitem__(self, index: int) -> Sample:
        self.file = self.file or "open"
        return super().__getitem__(index)


def test_what_a_dataset_opens_when_it_is_first_read_is_left_to_the_workers():
    dataset = Lazy(samples_of(5))
    fingerprint_data(mixture_of(dataset))
    assert dataset.read
    assert dataset.file is None
