import numpy as np
import pytest
import torch
from bpe import CHATML, bpe_tokenizer
from PIL import Image
from tiny import example, tiny_experiment, tiny_model, tiny_recipe
from transformers import Idefics3ImageProcessor, Idefics3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from nanovlm import ConfigError, ImageSpec, SkipSample, Turn, VisionLanguageModel, train
from nanovlm.components import TextConfig
from nanovlm.data.conversation import TextFormat, load_text_format
from nanovlm.data.image_format import FORMATS, markers
from nanovlm.data.images import in_proportion, to_tensor
from nanovlm.data.packing import pack, pack_row
from nanovlm.generation import num_tokens
from nanovlm.planning import plan

IDEFICS3 = ("<fake_token_around_image>", "<global-img>")
NUM_IMAGE_TOKENS = 5
WITH_MARKERS = ("language_decoder.image_format=idefics3", "language_decoder.vocab_size=259")


def config_of(folder, template="tokenizer", **options) -> TextConfig:
    return TextConfig(weights=str(folder), template=template, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer of SmolLM2's kind, with its template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    bpe_tokenizer("<|im_end|>", CHATML).save_pretrained(str(folder))
    return folder


def shown(text: TextFormat, tokens) -> str:
    """The text, with [M] where a picture's tokens are laid."""
    words = [text.tokenizer.decode([i]) for i in tokens.ids]
    for at in reversed(tokens.image_at):
        words.insert(at, "[M]")
    return "".join(words)


# Pictures, and what a user says, as it stands here and as the stock processor is told it.
QUESTIONS = {
    "a picture first": (1, "What colour is it?", "<image>What colour is it?"),
    "several": (2, "Which?", "<image><image>Which?"),
    "between words": (2, "Is <image> like\n<image>?", "Is <image> like\n<image>?"),
    "at the end": (1, " Look: <image>", " Look: <image>"),
    "none": (0, "Which colour?", "Which colour?"),
}


@pytest.mark.parametrize("template", ["tokenizer", "question_answer"])
@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_idefics3_writes_what_the_stock_processor_writes(folder, question, template):
    number, ours, theirs = question
    text = load_text_format(config_of(folder, template, image_format="idefics3"), vocab_size=400)
    turns = [Turn(ours, "The small square."), Turn("Sure?", "Yes.")]
    processor = Idefics3Processor(
        Idefics3ImageProcessor(do_image_splitting=False), text.tokenizer, image_seq_len=NUM_IMAGE_TOKENS
    )
    messages = [
        {"role": role, "content": words}
        for turn in [Turn(theirs, turns[0].assistant), turns[1]]
        for role, words in (("user", turn.user), ("assistant", turn.assistant))
    ]
    rendered = text.tokenizer.apply_chat_template(messages, chat_template=text.template, tokenize=False)
    pictures = [Image.new("RGB", (8, 6))] * number or None
    expected = processor(images=pictures, text=rendered, add_special_tokens=False)["input_ids"][0]
    image_id = text.tokenizer.convert_tokens_to_ids("<image>")
    found = text.conversation(turns, number)
    ids = list(found.ids)
    for at in reversed(found.image_at):
        ids[at:at] = [image_id] * NUM_IMAGE_TOKENS
    assert ids == expected[: len(ids)]
    assert text.tokenizer.decode(expected[len(ids) :]).strip() == ""  # what a template writes after the last turn's end
    assert expected.count(image_id) == number * NUM_IMAGE_TOKENS


def test_nanovlm_writes_what_upstream_writes(folder):
    text = load_text_format(config_of(folder, image_format="nanovlm"), vocab_size=400)
    one = shown(text, text.prompt("What?", 1))
    assert one.endswith("<|im_start|>user\n<|global_image|>[M]What?<|im_end|>\n<|im_start|>assistant\n")
    several = shown(text, text.prompt("What?", 2))
    assert "user\n<image: 0><|global_image|>[M]<image: 1><|global_image|>[M]What?<|im_end|>" in several
    placed = shown(text, text.prompt("a <image> or <image>", 2))
    assert "user\na <image: 0><|global_image|>[M] or <image: 1><|global_image|>[M]<|im_end|>" in placed


def test_plain_changes_not_one_id(folder):
    turns = [Turn("Is <image> like <image>?", "No."), Turn("Sure?", "Yes")]
    config = config_of(folder)
    assert (config.image_format, markers(config)) == ("plain", [])
    text = load_text_format(config, vocab_size=360)
    bare = TextFormat(bpe_tokenizer("<|im_end|>", CHATML), "tokenizer")
    assert len(text.tokenizer) == len(bare.tokenizer)
    assert text.conversation(turns, 2) == bare.conversation(turns, 2)
    assert text.conversation(turns[1:], 1).image_at == [0]  # before all that the template writes
    assert FORMATS["plain"].resized(ImageSpec(16, "lanczos")) == ImageSpec(16, "lanczos")


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("template", ["tokenizer", "question_answer"])
def test_markers_are_never_supervised_and_all_else_is_as_without_them(folder, image_format, template):
    turns = [Turn("a <image> or b <image>?", "b <image> <fake_token_around_image>"), Turn("Sure?", "Yes")]
    text, plain = (
        load_text_format(config_of(folder, template, image_format=name), 400) for name in (image_format, "plain")
    )
    found, expected = text.conversation(turns, 2), plain.conversation(turns, 2)
    extra = {text.special_ids[marker] for marker in FORMATS[image_format].markers}
    assert {i for i, taught in zip(found.ids, found.supervised, strict=True) if taught}.isdisjoint(extra)
    assert [i for i, taught in zip(found.ids, found.supervised, strict=True) if taught] == [
        i for i, taught in zip(expected.ids, expected.supervised, strict=True) if taught
    ]
    prompt = text.prompt(turns[0].user, 2)
    assert prompt.ids == found.ids[: len(prompt.ids)]
    assert prompt.image_at == found.image_at
    assert text.decode(found.ids[len(prompt.ids) :]) == "b <image> <fake_token_around_image>"


def test_a_markers_name_in_the_data_is_plain_text(folder):
    text = load_text_format(config_of(folder, image_format="idefics3", extra_tokens=["<box>"]), 400)
    tokens = text.conversation([Turn("What is <global-img>?", "a <box>")], 0)
    assert {text.special_ids[name] for name in (*IDEFICS3, "<box>")}.isdisjoint(tokens.ids)


def test_a_template_may_write_extra_tokens(folder, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}<box>{{ m.content }}<end>{% endfor %}")
    text = load_text_format(config_of(folder, str(file), extra_tokens=["<box>", "<end>"]), 400)
    tokens = text.conversation([Turn("a", "b")], 0)
    ids = text.tokenizer.convert_tokens_to_ids(["<box>", "a", "<end>", "<box>", "b", "<end>"])
    assert tokens.ids == ids
    assert text.special_ids["<end>"] in text.stop_ids
    assert ids[0] == len(bpe_tokenizer("<|im_end|>"))  # behind all others, in their order
    assert ids[2] == ids[0] + 1


def test_a_token_that_the_tokenizer_has_keeps_its_id(folder):
    text = load_text_format(config_of(folder, extra_tokens=["<s>", "<box>"]), 400)
    own = bpe_tokenizer("<|im_end|>")
    assert text.special_ids["<s>"] == own.convert_tokens_to_ids("<s>")
    assert len(text.tokenizer) == len(own) + 1


def test_markers_count_as_text():
    model = tiny_model(*WITH_MARKERS)
    turns = [Turn("What?", "red"), Turn("And?", "blue")]
    plain, text = tiny_model().text, model.text
    length = len(plain.conversation(turns, 2).ids)
    assert len(text.conversation(turns, 2).ids) == length + 6
    first = len(plain.conversation(turns[:1], 2).ids)
    assert len(plain.conversation(turns, 2, "fit", limit=first).ids) == first
    with pytest.raises(SkipSample, match="too long"):
        text.conversation(turns, 2, "fit", limit=first)
    assert len(text.conversation(turns, 2, "fit", limit=first + 6).ids) == first + 6
    assert text.conversation(turns, 2, "first") == text.conversation(turns[:1], 2)


def test_rows_hold_markers_and_image_tokens():
    model = tiny_model(*WITH_MARKERS)
    one = example(model, [Turn("What?", "red")], 2)
    row = pack_row([one], model.num_image_tokens)
    fake, single = (model.text.special_ids[name] for name in IDEFICS3)
    slots = row.image_slots.view(2, model.num_image_tokens)
    for first, last in zip(slots[:, 0], slots[:, -1], strict=True):
        assert row.token_ids[first - 2 : first].tolist() == [fake, single]
        assert row.token_ids[last + 1] == fake
    assert row.num_tokens == len(one.tokens.ids) + slots.numel() == num_tokens(model, one)
    assert len(pack([one, one], model.num_image_tokens, row.num_tokens, 8)) == 2
    assert not {fake, single} & set(row.targets.tolist())


SHAPES = [
    (40, 40),
    (7, 7),
    (640, 480),
    (480, 640),
    (20, 15),
    (400, 100),
    (100, 400),
    (12, 3),
    (3, 12),
    (333, 217),
    (1, 90),
]


def drawn(width: int, height: int) -> Image.Image:
    """Noise with coarse forms."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), dtype=np.uint8))
    fine = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return Image.blend(coarse.resize((width, height)), fine, 0.3)


def stock(processor: type, picture: Image.Image, spec: ImageSpec) -> torch.Tensor:
    """The stock processor's pixels before normalisation."""
    prepare = processor(
        do_image_splitting=False, do_rescale=False, do_normalize=False, do_pad=False,
        size={"longest_edge": spec.longest_edge}, max_image_size={"longest_edge": spec.size},
        resample=getattr(Image.Resampling, spec.resample.upper()),
    )  # fmt: skip
    return prepare(picture, return_tensors="pt")["pixel_values"][0, 0].int()


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [16, 50])
def test_idefics3_resizes_as_the_stock_processor(shape, size, resample):
    spec = FORMATS["idefics3"].resized(ImageSpec(size, resample))
    picture = drawn(*shape)
    assert torch.equal(to_tensor(picture, spec).int(), stock(Idefics3ImageProcessor, picture, spec))
    off = (to_tensor(picture, spec).int() - to_tensor(picture, ImageSpec(size, resample)).int()).abs()
    assert off.max() > 0  # no small matter


@pytest.mark.parametrize("resample", ["nearest", "lanczos"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_filters_of_pillow_resize_as_its_processor_of_pillow(shape, resample):
    spec = FORMATS["idefics3"].resized(ImageSpec(16, resample))
    assert torch.equal(to_tensor(drawn(*shape), spec).int(), stock(Idefics3ImageProcessorPil, drawn(*shape), spec))


def test_the_shorter_side_is_even():
    assert in_proportion(480, 640, 64) == (48, 64)
    assert in_proportion(640, 490, 64) == (64, 50)  # not 49
    assert in_proportion(10, 10, 64) == (64, 64)
    assert in_proportion(1, 500, 64) == (1, 64)
    assert in_proportion(500, 1, 64) == (64, 1)


def test_the_encoder_takes_pictures_as_the_text_says():
    plain, idefics3 = tiny_model(), tiny_model(*WITH_MARKERS)
    assert plain.vision_encoder.image == ImageSpec(16, "bicubic")
    assert idefics3.vision_encoder.image == ImageSpec(16, "bicubic", longest_edge=64)
    assert FORMATS["idefics3"].resized(ImageSpec(16, longest_edge=32)).longest_edge == 32  # an encoder's own stands
    with_number = tiny_model("language_decoder.image_format=nanovlm", "language_decoder.vocab_size=258")
    assert with_number.vision_encoder.image == ImageSpec(16, "bicubic")


def test_a_model_with_markers_is_trained_saved_and_loaded(tmp_path):
    overrides = (*WITH_MARKERS, "language_decoder.vocab_size=260", "language_decoder.extra_tokens=['<box>']")
    summary = train(tiny_experiment(*overrides), tmp_path / "run")
    assert summary["steps"] == 3
    loaded = VisionLanguageModel.from_pretrained(tmp_path / "run" / "model")
    assert loaded.text.special_ids["<box>"] == 257
    assert [loaded.text.special_ids[name] for name in IDEFICS3] == [258, 259]
    assert len(loaded.text.tokenizer) == 260
    fresh = tiny_model(*overrides)
    turns = [Turn("What <box>?", "red")]
    assert loaded.text.conversation(turns, 1) == fresh.text.conversation(turns, 1)
    assert loaded.vision_encoder.image == fresh.vision_encoder.image
    loaded.save_pretrained(tmp_path / "again")
    again = VisionLanguageModel.from_pretrained(tmp_path / "again")
    assert again.text.conversation(turns, 1) == fresh.text.conversation(turns, 1)
    picture = Image.new("RGB", (40, 10), "red")
    assert again.generate("What?", [picture], 3) == loaded.generate("What?", [picture], 3)


def test_the_plan_counts_markers_as_text():
    plain, with_markers = plan(tiny_recipe()), plan(tiny_recipe(*WITH_MARKERS))
    assert with_markers.longest_sample == plain.longest_sample
    assert with_markers.parameters["language_decoder"] == plain.parameters["language_decoder"] + 2 * 24


def test_an_embedding_too_small_for_the_markers_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"language_decoder: the tokenizer has 259 tokens \(with <fake_token_around_image>, <global-img>\), "
        "the decoder's embedding only vocab_size=257: raise it",
    ):
        _ = tiny_model("language_decoder.image_format=idefics3").text


def test_a_marker_named_twice_or_without_a_name_is_refused():
    with pytest.raises(ConfigError, match=r"language_decoder\.extra_tokens.*<box> stands there more than once"):
        tiny_recipe("language_decoder.extra_tokens=['<box>', '<a>', '<box>']")
    with pytest.raises(ConfigError, match=r"language_decoder\.extra_tokens: a name is empty"):
        tiny_recipe("language_decoder.extra_tokens=[' ']")


def test_an_unknown_format_is_named():
    with pytest.raises(ConfigError, match=r"language_decoder\.image_format='idefics2'"):
        tiny_recipe("language_decoder.image_format=idefics2")


def test_every_format_has_a_name_that_an_experiment_may_say():
    for name in FORMATS:
        assert TextConfig(image_format=name).image_format == name
