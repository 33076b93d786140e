import io
import time
from statistics import fmean

import pytest
import torch
from PIL import Image
from tiny import tiny_recipe

from nanovlm.bench import loader
from nanovlm.bench.photographs import Photographs, jpeg
from nanovlm.bench.setup import with_steps
from nanovlm.seeding import generator


def test_a_photograph_is_a_jpeg_of_640_x_480_with_shades_edges_and_noise():
    data = jpeg(generator("photograph", 0))
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size, image.mode) == ("JPEG", (640, 480), "RGB")
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(480, 640, 3).float()
    steps = pixels.diff(dim=1).abs()
    assert 1 < float(steps.median()) < 10  # neighbours differ a little
    assert float(steps.max()) > 30  # and at an edge by much
    assert float(pixels.std()) > 30
    assert 40_000 < len(data) < 300_000  # as those of cameras and phones at this size


def test_texts_are_as_long_as_those_of_synthetic_steps():
    steps = loader.open_steps(with_steps(tiny_recipe("training.samples_per_step=64"), 8), synthetic=True)
    made = [steps[n] for n in range(8)]
    assert sum(step.num_samples for step in made) == 8 * 64  # none is too long
    tokens = [
        int(length) - 4
        for step in made
        for row in step.rows
        for length in row.segments.cu_seqlens.diff()[: row.num_samples]
    ]
    assert fmean(tokens) == pytest.approx(41, abs=2)
    assert fmean(row.num_targets / row.num_samples for step in made for row in step.rows) == pytest.approx(20, abs=2)


def test_samples_differ_and_are_always_the_same():
    first, again = Photographs(40, 79), Photographs(40, 79)
    assert first[3] == again[3]
    assert first[0].images[0] != first[1].images[0]
    assert len({sample.turns[0] for sample in (first[i] for i in range(40))}) > 10


@pytest.fixture
def slow_samples(monkeypatch):
    original = Photographs.__getitem__

    def slow(self, index):
        time.sleep(0.01)
        return original(self, index)

    monkeypatch.setattr(Photographs, "__getitem__", slow)


def test_the_rate_is_that_of_whoever_prepares(slow_samples):
    figures = loader.measure_loader(tiny_recipe("data.workers=0"), 2, synthetic=True)
    assert figures["one_process"]["samples"] == 16
    assert 20 < figures["one_process"]["samples_per_second"] < 100
    assert "with_workers" not in figures


def test_what_workers_have_ready_before_the_clock_starts_is_not_counted(slow_samples):
    figures = loader.measure_loader(tiny_recipe("data.workers=1"), 4, synthetic=True)
    assert figures["workers"] == 1
    assert figures["with_workers"]["samples"] == 4 * 8
    assert figures["with_workers"]["samples_per_second"] < 100


def test_the_experiments_own_data_is_read_without_synthetic():
    assert loader.measure_loader(tiny_recipe(), 2, synthetic=False)["one_process"]["samples"] == 16


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), loader.one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before
