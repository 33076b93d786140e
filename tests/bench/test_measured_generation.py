import pytest
from tiny import tiny_model, tiny_recipe

from nanovlm.bench import generation
from nanovlm.generation import generate_ids


def test_no_token_stops_an_answer():
    model, recipe = tiny_model(), tiny_recipe()
    row = generation.prompts(recipe, model, 3)
    everything = range(recipe.blueprint.language_decoder.config.vocab_size)
    assert [len(ids) for ids in generate_ids(model, row, 20, stop_ids=everything)] == [1] * 3
    assert [len(ids) for ids in generate_ids(model, row, 20, stop_ids=())] == [20] * 3


def test_by_default_the_text_format_says_what_stops():
    model = tiny_model()
    row = generation.prompts(tiny_recipe(), model, 2)
    stops = model.text.stop_ids
    assert generate_ids(model, row, 8) == generate_ids(model, row, 8, stop_ids=stops)


def test_prompts_have_a_picture_and_no_answer():
    row = generation.prompts(tiny_recipe(), tiny_model(), 5)
    assert (row.num_samples, row.num_images, row.num_targets) == (5, 5, 0)


def test_figures_follow_from_the_seconds(monkeypatch):
    """Each answer takes as long as it is said to: 0.1 s to its first token, and 6.4 s in all."""
    monkeypatch.setattr(
        generation, "seconds", lambda model, row, count, repeats: [0.1 if count == 1 else 6.4] * repeats
    )
    one, many = generation.measure_generation(tiny_recipe(), 2)["batches"]
    assert (one["batch"], many["batch"]) == (1, 64)
    assert one["tokens_per_second"] == pytest.approx(10)
    assert many["tokens_per_second"] == pytest.approx(640)
    assert one["ms_per_token"] == pytest.approx(100)
    assert one["first_token_ms"] == pytest.approx(100)
    assert one["next_token_ms"] == pytest.approx(100)


def test_every_answer_is_timed_after_a_warm_up(monkeypatch):
    asked = []
    monkeypatch.setattr(
        generation, "generate_ids", lambda model, row, count, stop_ids: asked.append((count, tuple(stop_ids)))
    )
    model = tiny_model()
    taken = generation.seconds(model, generation.prompts(tiny_recipe(), model, 1), 64, 3)
    assert len(taken) == 3
    assert asked == [(64, ())] * (3 + generation.WARM_UP)
