"""The same on real pretrained weights, where they lie: NANOVLM_REAL_WEIGHTS names a folder that holds
``smollm2-135m-instruct/`` and ``dinov2-small/`` as the hub has them. Without it these tests are skipped."""

import os
from pathlib import Path

import pytest
import torch
from tiny import model_of, random_pixels

from nanovlm import Turn, VisionLanguageModel
from nanovlm.data.packing import Example, pack_row
from nanovlm.generation import Prompt, generate_ids

FOLDER = os.environ.get("NANOVLM_REAL_WEIGHTS", "")
pytestmark = [pytest.mark.real, pytest.mark.skipif(not FOLDER, reason="NANOVLM_REAL_WEIGHTS names no folder")]

SMOLLM2, DINOV2 = (str(Path(FOLDER, name)) for name in ("smollm2-135m-instruct", "dinov2-small"))
QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about a small model.",
    "List three prime numbers, and say why 1 is none.",
    "Was ist der Unterschied zwischen Hunden und Katzen? \N{DOG FACE}",
)


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    built = model_of(
        {"name": "hf_vision", "weights": DINOV2},
        {"name": "smollm2", "weights": SMOLLM2, "template": "tokenizer"},
    )
    built.load_pretrained()
    return built


def test_prompts_and_answers_equal_those_of_transformers(model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    reference = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32)
    spec = model.vision_encoder.image
    answers = generate_ids(
        model, pack_row([Prompt(question).example(model.text, spec) for question in QUESTIONS], 1), max_new_tokens=40
    )
    for question, answer in zip(QUESTIONS, answers, strict=True):
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        assert model.text.prompt(question, 0).ids == ids[0].tolist()
        whole = reference.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :].tolist()
        assert answer[: len(whole)] == whole


def test_a_conversation_is_tokenised_as_by_transformers(model):
    turns = [Turn("Hello there.", "Hi! How can I help?"), Turn("Say <|im_end|> twice.", "No.")]
    whole = model.text.decode(model.text.conversation(turns[:1], 0).ids[-9:])
    assert whole.endswith("Hi! How can I help?")
    ids = model.text.conversation(turns, 0).ids
    assert ids.count(model.text.special_ids["<|im_end|>"]) == 5  # system, two turns of two; none from the words


def test_patches_equal_those_of_transformers(model):
    from transformers import AutoModel

    encoder = model.vision_encoder
    reference = AutoModel.from_pretrained(DINOV2).eval()
    pixels = random_pixels(2, encoder.image.size)
    with torch.inference_mode():
        normalised = (pixels / 255 - encoder.mean) / encoder.std
        expected = reference(normalised).last_hidden_state[:, 1:]  # without the class token
        found = encoder(pixels)
    assert (found - expected).norm() / expected.norm() < 1e-5


def test_a_saved_model_gives_the_same_logits_bit_for_bit(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    again = VisionLanguageModel.from_pretrained(tmp_path / "model")
    tokens = model.text.conversation([Turn("What is this?", "A cat.")], 1)
    row = pack_row([Example(tokens, random_pixels(1, model.vision_encoder.image.size))], model.num_image_tokens)
    with torch.inference_mode():
        assert torch.equal(model.hidden(row), again.hidden(row))
        assert torch.equal(model.losses(row), again.losses(row))
