"""The chat template of an exported folder writes what nanovlm's own text format does."""

import pytest
from bpe import CHATML as BPE_CHATML
from bpe import bpe_tokenizer
from exporting import IDEFICS3
from tiny import tiny_model

from nanovlm.interop.agreement import with_image_ids
from nanovlm.interop.processor import processor_of

CHATML = (
    "{% for message in messages %}{{ message.role }}\n{{ message.content }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)
TEMPLATES = {
    "question_answer": None,
    "chat": CHATML,
    "without a generation prompt": CHATML.partition("{% if add")[0],
    "system words first": "You answer briefly.\n\n" + CHATML,
    "spaces at both ends": "  {% for message in messages %}  {{ message.content | trim }}{{ eos_token }}{% endfor %}  ",
    "line breaks at both ends": "\n{% for message in messages %}\n{{ message.content }}{{ eos_token }}\n{% endfor %}\n",
    "variables": "{% set messages = messages[0:] %}{% set ns = namespace(n=0) %}{% for message in messages %}"
    "{% set ns.n = ns.n + 1 %}{{ ns.n }} {{ message['content'] }}{{ eos_token }}{% endfor %}",
}
every_template = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())


def model_with(template, folder, *overrides):
    if template is None:
        return tiny_model(*overrides)
    file = folder / "chat.jinja"
    file.write_text(template)
    return tiny_model(f"language_decoder.template={file}", *overrides)


def rendered(model, content) -> list[int]:
    """The ids of transformers' prompt, where a picture is as many image tokens as our own, without marks around it."""
    processor = processor_of(model, model.vision_encoder.image, {})
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    image = processor.image_token
    before, after = (model.text.image_format.before, model.text.image_format.after)
    text = text.replace(image, "".join(before) + image * model.num_image_tokens + "".join(after))
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def ours(model, question, images) -> list[int]:
    image_id = processor_of(model, model.vision_encoder.image, {}).image_token_id
    return with_image_ids(model.text.prompt(question, images), model.num_image_tokens, image_id)


TEXT = {"type": "text", "text": "What is it?"}
IMAGE = {"type": "image"}
CONTENTS = {
    "words": ("What is it?", "What is it?", 0),
    "text": ([TEXT], "What is it?", 0),
    "a picture first": ([IMAGE, TEXT], "What is it?", 1),
    "two pictures first": ([IMAGE, IMAGE, TEXT], "What is it?", 2),
    "pictures between": ([TEXT, IMAGE, TEXT, IMAGE], "What is it?<image>What is it?<image>", 2),
    "pictures all over": ([IMAGE, TEXT, IMAGE], "<image>What is it?<image>", 2),
    "marked by the user": ("Is <image> it?", "Is <image> it?", 1),
}
every_content = pytest.mark.parametrize("content, question, images", CONTENTS.values(), ids=CONTENTS.keys())


@every_template
@every_content
@pytest.mark.parametrize("overrides", [(), IDEFICS3], ids=["plain", "idefics3"])
def test_the_prompt_is_the_same(tmp_path, template, content, question, images, overrides):
    model = model_with(template, tmp_path, *overrides)
    assert rendered(model, content) == ours(model, question, images)


@every_template
def test_a_conversation_of_several_turns_is_the_template_s_own(tmp_path, template):
    model = model_with(template, tmp_path)
    messages = [
        {"role": role, "content": content}
        for role, content in (("user", "a?"), ("assistant", "b"), ("user", "c?"), ("assistant", "d"))
    ]
    processor = processor_of(model, model.vision_encoder.image, {})
    own = model.text.tokenizer.apply_chat_template(messages, chat_template=model.text.template, tokenize=False)
    assert processor.apply_chat_template(messages) == own
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    assert processor.apply_chat_template(parts) == own


def test_of_a_tokenizer_with_merges_and_a_chat_template_the_prompt_is_the_same(tmp_path):
    bpe_tokenizer("<|im_end|>", BPE_CHATML).save_pretrained(str(tmp_path))
    options = ("language_decoder.template=tokenizer", f"language_decoder.tokenizer={tmp_path}")
    for overrides in ((), IDEFICS3[:1]):
        model = tiny_model(*options, "language_decoder.vocab_size=600", *overrides)
        for content, question, images in CONTENTS.values():
            assert rendered(model, content) == ours(model, question, images)
