import math
import subprocess
import sys
from statistics import fmean, median, pstdev

import pytest
import torch
from tiny import QUICKSTART, SIZES, tiny_model, tiny_recipe

from nanovlm.bench.setup import synthetic_steps
from nanovlm.bench.synthetic import POOL, Lengths, draw_examples, num_supervised
from nanovlm.seeding import generator


def drawn_lengths(limit: int, count: int = 4000) -> list[int]:
    lengths, random = Lengths(limit), generator("test")
    return [lengths.draw(random) for _ in range(count)]


@pytest.mark.parametrize("limit", [79, 256, 1024])
def test_texts_have_41_tokens_on_average_and_never_more_than_the_limit(limit):
    lengths = drawn_lengths(limit)
    assert fmean(lengths) == pytest.approx(41, abs=1)
    assert max(lengths) <= limit


def test_lengths_are_log_normal():
    logarithms = [math.log(length) for length in drawn_lengths(1024)]
    assert pstdev(logarithms) == pytest.approx(0.5, abs=0.02)
    assert median(logarithms) == pytest.approx(fmean(logarithms), abs=0.03)


@pytest.mark.parametrize("limit", [1, 3, 20])
def test_a_low_limit_is_kept_too(limit):
    assert 1 <= min(drawn_lengths(limit, 200)) <= max(drawn_lengths(limit, 200)) <= limit


def test_about_20_tokens_of_a_text_are_supervised():
    assert fmean(map(num_supervised, drawn_lengths(79))) == pytest.approx(20, abs=1)


def test_an_example_is_a_picture_and_ids_of_the_decoders_vocabulary():
    model = tiny_model("language_decoder.vocab_size=300")
    drawn = draw_examples(model, 79, 0)
    examples = [next(drawn) for _ in range(50)]
    assert {example.pixels.shape for example in examples} == {(1, 3, 16, 16)}
    assert all(example.tokens.supervised[-1] and not example.tokens.supervised[0] for example in examples)
    ids = {token for example in examples for token in example.tokens.ids}
    assert min(ids) >= 0 and 280 < max(ids) < 300


def test_the_seed_decides_the_examples():
    model = tiny_model()
    first, again, other = (next(draw_examples(model, 79, seed)) for seed in (0, 0, 1))
    assert first.tokens == again.tokens != other.tokens
    assert first.pixels.equal(again.pixels) and not first.pixels.equal(other.pixels)


def test_steps_come_up_again_and_are_packed_as_in_training():
    recipe = tiny_recipe("training.steps=9", "training.tokens_per_row=100", "training.samples_per_step=6")
    model = tiny_model()
    steps = synthetic_steps(recipe, model)
    assert len(steps) == 9
    assert steps[0] is steps[POOL] and steps[0] is not steps[1]
    for step in (steps[i] for i in range(POOL)):
        assert step.num_samples == 6
        assert len(step.rows) > 1  # six samples of 45 tokens
        assert all(row.num_tokens <= 100 for row in step.rows)
        assert all(len(row.image_slots) == row.num_images * model.num_image_tokens for row in step.rows)


BLOCKED = """
import sys
REFUSED = ("transformers", "tokenizers", "datasets", "huggingface_hub", "socket")
for name in REFUSED:
    if name != "socket":
        sys.modules[name] = None  # importing it is an ImportError
import socket
def refuse(*arguments, **options): raise OSError("the network was asked for")
socket.socket.connect = socket.getaddrinfo = refuse
from nanovlm.cli import main
sys.argv = ["nanovlm", "bench", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("part", ["step", "generate"])
def test_nothing_is_needed_but_torch(part):
    """Neither the tokenizer nor the data that the experiment names are there."""
    named = ["language_decoder.tokenizer=nobody/nothing", "data.train=[{name: the_cauldron, source: nobody/nothing}]"]
    sizes = [size for size in SIZES if not size.startswith("data.train")]
    words = [QUICKSTART, *sizes, *named, "--part", part, "--synthetic", "--steps", "1", "--json"]
    done = subprocess.run([sys.executable, "-c", BLOCKED, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"synthetic": true' in done.stdout


def test_without_synthetic_samples_the_data_is_needed():
    """So the test above does refuse something."""
    words = [QUICKSTART, *SIZES, "language_decoder.tokenizer=nobody/nothing", "--steps", "1"]
    done = subprocess.run([sys.executable, "-c", BLOCKED, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "import of transformers halted" in done.stderr


def test_pixels_are_bytes():
    assert next(draw_examples(tiny_model(), 79)).pixels.dtype == torch.uint8
