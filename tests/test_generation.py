import pytest
import torch
from PIL import Image
from tiny import random_pixels, tiny_model

from nanovlm import DataError, VisionLanguageModel
from nanovlm.data.packing import Example, PackedRow, pack_row
from nanovlm.generation import generate, generate_ids

NEW_TOKENS = 8
QUESTIONS = {"Hi": 0, "What colour is the small square?": 1, "<image> and <image>?": 2, "x": 0, "And here?": 1}


def varied_model() -> VisionLanguageModel:
    """A tied head repeats its last token; this one has much to say, and its tokens depend on all before them."""
    model = tiny_model("language_decoder.tie_word_embeddings=false", seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2 if parameter.ndim > 1 else 1)
    return model


def prompts(model: VisionLanguageModel) -> list[Example]:
    return [
        Example(model.text.prompt(question, count), random_pixels(count, seed=i))
        for i, (question, count) in enumerate(QUESTIONS.items())
    ]


def row_of(model: VisionLanguageModel, examples: list[Example]) -> PackedRow:
    return pack_row(examples, model.num_image_tokens)


def longer(prompt: Example, ids: list[int]) -> Example:
    """The prompt with what was answered so far behind it, as if it had been asked with it."""
    tokens = prompt.tokens
    return Example(
        type(tokens)(tokens.ids + ids, tokens.supervised + [False] * len(ids), tokens.image_at), prompt.pixels
    )


@torch.no_grad()
def from_scratch(model: VisionLanguageModel, prompt: Example, count: int) -> tuple[list[int], torch.Tensor]:
    """Greedy ids without any cache: the whole sequence again for each token. And the hidden state before each."""
    ids: list[int] = []
    states = []
    for _ in range(count):
        states.append(model.hidden(row_of(model, [longer(prompt, ids)]))[-1])
        ids.append(int(model.language_decoder.logits(states[-1]).argmax()))
    return ids, torch.stack(states)


@torch.no_grad()
def test_cached_hidden_states_equal_recomputing():
    model = varied_model()
    decoder, asked = model.language_decoder, prompts(model)
    references = [from_scratch(model, prompt, NEW_TOKENS) for prompt in asked]
    row = row_of(model, asked)
    cache = decoder.new_cache(len(asked), 200)
    hidden = model.hidden(row, cache)[row.segments.last]
    for step in range(NEW_TOKENS):
        torch.testing.assert_close(
            hidden, torch.stack([states[step] for _, states in references]), rtol=1e-5, atol=1e-5
        )
        said = torch.tensor([ids[step] for ids, _ in references])
        assert decoder.logits(hidden).argmax(dim=-1).equal(said)
        hidden = decoder(decoder.embed(said), cache.next(), cache)


def test_a_batch_says_what_each_prompt_alone_would_say():
    model = varied_model()
    asked = prompts(model)
    references = [from_scratch(model, prompt, NEW_TOKENS)[0] for prompt in asked]
    assert len({token for ids in references for token in ids}) > len(asked)  # the model does not repeat itself
    model.text.stop_ids = frozenset({-1})
    assert generate_ids(model, row_of(model, asked), NEW_TOKENS) == references


def test_it_stops_when_all_have_said_a_stop_id():
    model = varied_model()
    asked = prompts(model)
    first, second = (from_scratch(model, prompt, NEW_TOKENS)[0] for prompt in asked[:2])
    model.text.stop_ids = frozenset({first[1], second[3]})
    ids = generate_ids(model, row_of(model, asked[:2]), NEW_TOKENS)
    stop = [next(i for i, token in enumerate(said) if token in model.text.stop_ids) for said in (first, second)]
    assert ids == [said[: max(stop) + 1] for said in (first, second)]
    expected = [
        model.text.tokenizer.decode(said[:end]).strip() for said, end in zip((first, second), stop, strict=True)
    ]
    assert generate(model, asked[:2], NEW_TOKENS) == expected


@pytest.mark.parametrize("count", [1, 2, 7])
def test_it_never_says_more_than_it_may(count):
    model = varied_model()
    model.text.stop_ids = frozenset({-1})
    assert [len(ids) for ids in generate_ids(model, row_of(model, prompts(model)), count)] == [count] * len(QUESTIONS)


def test_a_prompt_too_long_for_the_decoder_says_by_how_much():
    model = varied_model()
    asked = prompts(model)[:1]
    longest = len(asked[0].tokens.ids) + 250
    with pytest.raises(DataError, match=f"take up to {longest} tokens, the decoder at most 256; ask less, or lower"):
        generate(model, asked, 250)


def test_no_prompt_gives_no_answer():
    assert generate(varied_model(), [], 5) == []


def test_asking_leaves_the_model_in_its_mode():
    model = varied_model().train()
    model.generate("Hi", max_new_tokens=2)
    assert model.training
    assert not any(module.training for module in model.eval().modules())


@pytest.mark.parametrize("count", [0, -1])
def test_an_answer_takes_at_least_one_token(count):
    with pytest.raises(DataError, match=f"^max_new_tokens={count}: an answer takes at least one token$"):
        varied_model().generate("Hi", max_new_tokens=count)


@pytest.mark.parametrize(
    ("question", "images", "reason"),
    [
        ("What?", ["nowhere.png"], "picture not found"),
        ("<image> or <image>?", [Image.new("RGB", (4, 4))], "picture marks and pictures differ in number"),
    ],
)
def test_a_question_that_cannot_be_asked_says_why(question, images, reason):
    with pytest.raises(DataError, match=f"^the question cannot be asked: {reason}$"):
        varied_model().generate(question, images)
