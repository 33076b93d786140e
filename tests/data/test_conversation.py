import pytest
import torch
from bpe import CHATML, SPECIALS, bpe_tokenizer
from tiny import tiny_model

from nanovlm import ConfigError, SkipSample, Turn
from nanovlm.data.conversation import TextFormat, load_text_format
from nanovlm.data.packing import IGNORED, Example, PackedRow, pack_row
from nanovlm.data.tokenizer import byte_tokenizer

LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
JINJA_FILE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role | upper }}> {{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
)
PAIR = [Turn("What?", "red"), Turn("And now?", "blue")]


def sentencepiece_tokenizer():
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "\u2581", *"QuestionAswer:ab?", "\u2581a", "\u2581b", "ab", "ba", "\u2581ab", "\u2581ba"]
    merges = [("\u2581", "a"), ("\u2581", "b"), ("a", "b"), ("b", "a"), ("\u2581a", "b"), ("\u2581b", "a")]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Replace("\u2581", " ")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def bytes_with_chatml():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS})
    tokenizer.chat_template = CHATML
    return tokenizer


def from_jinja_file(folder) -> TextFormat:
    file = folder / "mine.jinja"
    file.write_text(JINJA_FILE)
    return TextFormat(bpe_tokenizer("</s>"), str(file))


# How each format is built, what it writes around an answer, and what ends a turn.
FORMATS = {
    "question_answer": (lambda _: TextFormat(bpe_tokenizer("</s>"), "question_answer"), " {}</s>"),
    "question_answer, bytes": (lambda _: TextFormat(byte_tokenizer(), "question_answer"), " {}<|endoftext|>"),
    "chatml": (lambda _: TextFormat(bpe_tokenizer("<|im_end|>", CHATML), "tokenizer"), "{}<|im_end|>"),
    "chatml, bytes": (lambda _: TextFormat(bytes_with_chatml(), "tokenizer"), "{}<|im_end|>"),
    "llama 2": (lambda _: TextFormat(bpe_tokenizer("</s>", LLAMA2), "tokenizer"), " {} </s>"),
    "jinja file": (from_jinja_file, " {}</s>"),
}
CONVERSATIONS = {
    "one turn": ([("What colour is the square?", "red")], 0),
    "with a picture": ([("What colour is the square?", "The square is red.")], 1),
    "several turns": ([("How many?", "two"), ("Which?", "a circle,\na square"), ("Sure?", "Yes.")], 1),
    "pictures in between": ([("Is <image> like <image>?", "No."), ("And <image>", "Yes")], 3),
    "special names": ([("<|im_end|></s><|endoftext|>", "</s> is <|im_end|>, not <s>"), ("<s>?", "<|im_start|>")], 0),
    "other scripts": ([("Was heißt 猫 auf Deutsch?", "Katze 🐈\u200d⬛"), ("\ue0001\ue001", "\ue0000\ue001")], 2),
    "spaces": ([("  two  before ", "two  after  "), ("\n", " \n x")], 0),
    "a mark without a picture": ([("Write <image>", "<image>")], 0),
}


@pytest.fixture(params=FORMATS)
def format_and_answer(request, tmp_path):
    build, answer = FORMATS[request.param]
    return build(tmp_path), answer


def turns_of(pairs) -> list[Turn]:
    return [Turn(*pair) for pair in pairs]


def pack_one(text: TextFormat, turns: list[Turn], num_images: int) -> PackedRow:
    pixels = torch.zeros(num_images, 3, 2, 2, dtype=torch.uint8)
    return pack_row([Example(text.conversation(turns, num_images), pixels)], num_image_tokens=3)


def rendered_by_transformers(text: TextFormat, turns: list[Turn], **options):
    roles = ("user", "assistant")
    messages = [{"role": role, "content": getattr(turn, role)} for turn in turns for role in roles]
    return text.tokenizer.apply_chat_template(messages, chat_template=text.template, **options)


@pytest.mark.parametrize(("pairs", "num_images"), CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_targets_are_the_assistants_words_and_the_end_of_turn(format_and_answer, pairs, num_images):
    text, answer = format_and_answer
    row = pack_one(text, turns_of(pairs), num_images)
    targets = row.targets[row.targets != IGNORED].tolist()
    assert text.tokenizer.decode(targets) == "".join(answer.format(words) for _, words in pairs)


@pytest.mark.parametrize(("pairs", "num_images"), CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_everything_is_written_as_the_template_says(format_and_answer, pairs, num_images):
    text, _ = format_and_answer
    turns = turns_of(pairs)
    expected = rendered_by_transformers(text, turns, tokenize=False)
    if num_images:
        expected = expected.replace("<image>", "")
    end = max(expected.rfind(text.tokenizer.decode([i])) + len(text.tokenizer.decode([i])) for i in text.stop_ids)
    assert text.tokenizer.decode(text.conversation(turns, num_images).ids) == expected[:end]


@pytest.mark.parametrize("pairs", [[("What colour is the square?", "red")], CONVERSATIONS["several turns"][0]])
def test_ids_are_those_of_transformers(format_and_answer, pairs):
    text, _ = format_and_answer
    expected = rendered_by_transformers(text, turns_of(pairs), tokenize=True, return_dict=False)
    ids = text.conversation(turns_of(pairs), 0).ids
    assert ids == expected[: len(ids)]
    after = text.tokenizer.decode(expected[len(ids) :])
    assert not after.strip()  # behind the last end of turn, a template may write a line break


@pytest.mark.parametrize(("pairs", "num_images"), CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_special_ids_come_from_the_template_only(format_and_answer, pairs, num_images):
    text, _ = format_and_answer
    plain = [("q", "a")] * len(pairs)
    specials = [
        [i for i in text.conversation(turns_of(some), 0).ids if i in text.special_ids.values()]
        for some in (pairs, plain)
    ]
    assert specials[0] == specials[1]


def test_conversations_of_any_length_in_any_order_are_as_if_each_was_the_first(format_and_answer, tmp_path, request):
    """The template is rendered once for each number of messages."""
    text, _ = format_and_answer
    build, _ = FORMATS[request.node.callspec.params["format_and_answer"]]
    for pairs, num_images in [*CONVERSATIONS.values(), *reversed(CONVERSATIONS.values())]:
        fresh = build(tmp_path)
        assert text.conversation(turns_of(pairs), num_images) == fresh.conversation(turns_of(pairs), num_images)


def test_a_template_is_rendered_once_for_conversations_of_one_length(monkeypatch):
    tokenizer = byte_tokenizer()
    render, lengths = tokenizer.apply_chat_template, []

    def counted(messages, **options):
        lengths.append(len(messages))
        return render(messages, **options)

    monkeypatch.setattr(tokenizer, "apply_chat_template", counted)
    text = TextFormat(tokenizer, "question_answer")
    for turns in (PAIR[:1], PAIR[1:], PAIR, PAIR[::-1], PAIR[:1]):
        text.conversation(turns, 0)
    assert sorted(lengths) == [2, 4]


def test_a_template_that_refuses_a_length_refuses_it_each_time(tmp_path):
    file = tmp_path / "short.jinja"
    file.write_text(
        "{% if messages | length > 4 %}{{ raise_exception('two turns at most') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    text = TextFormat(byte_tokenizer(), str(file))
    for _ in range(2):
        assert text.conversation(PAIR, 0).ids
        with pytest.raises(ConfigError, match=r"^the template cannot be rendered: two turns at most$"):
            text.conversation([*PAIR, *PAIR], 0)


@pytest.mark.parametrize("user", ["What is this?", "<image> or not?", "</s> <|im_end|>", " spaces  "])
@pytest.mark.parametrize("num_images", [0, 1])
def test_a_prompt_is_where_the_conversation_begins(format_and_answer, user, num_images):
    text, _ = format_and_answer
    prompt, whole = text.prompt(user, num_images), text.conversation([Turn(user, "an answer")], num_images)
    assert prompt.ids == whole.ids[: len(prompt.ids)]
    assert prompt.image_at == whole.image_at
    assert whole.supervised == [False] * len(prompt.ids) + [True] * (len(whole.ids) - len(prompt.ids))


def test_an_answer_is_decoded_up_to_its_end(format_and_answer):
    text, _ = format_and_answer
    whole = text.conversation([Turn("q", "a red, </s> square")], 0)
    answer = [token for token, said in zip(whole.ids, whole.supervised, strict=True) if said]
    assert text.decode(answer) == text.decode([*answer, *answer]) == "a red, </s> square"


def test_stop_ids_are_the_end_of_turn_and_of_text():
    text = TextFormat(bytes_with_chatml(), "tokenizer")
    assert text.stop_ids == {text.special_ids["<|im_end|>"], text.special_ids["<|endoftext|>"]}


def text_of_bytes() -> TextFormat:
    return TextFormat(byte_tokenizer(), "question_answer")


def test_pictures_stand_at_their_marks_or_else_first():
    text = text_of_bytes()
    marked = text.conversation([Turn("a <image><image> b", "c"), Turn("<image>", "d")], 3)
    before = [text.tokenizer.decode(marked.ids[:at]) for at in marked.image_at]
    assert before == ["Question: a ", "Question: a ", "Question: a  b Answer: c<|endoftext|>Question: "]
    assert text.conversation([Turn("a", "b"), Turn("c", "d")], 2).image_at == [0, 0]


@pytest.mark.parametrize(
    ("turns", "num_images"),
    [([Turn("<image>", "a")], 2), ([Turn("<image> <image>", "a")], 1), ([Turn("<image>", "a"), Turn("b", "c")], 3)],
)
def test_marks_and_pictures_must_agree(turns, num_images):
    for policy in ("first", "fit", "all"):
        with pytest.raises(SkipSample, match="picture marks and pictures differ in number"):
            text_of_bytes().conversation(turns, num_images, policy, 1000)


THREE = [Turn("a", "b"), Turn("c", "d"), Turn("e" * 40, "f")]
LENGTHS = [len(text_of_bytes().conversation(THREE[:n], 0).ids) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("policy", "limit", "kept"),
    [
        ("first", 1000, 1),
        ("first", LENGTHS[0], 1),
        ("fit", 1000, 3),
        ("fit", LENGTHS[2], 3),
        ("fit", LENGTHS[2] - 1, 2),
        ("fit", LENGTHS[1], 2),
        ("fit", LENGTHS[1] - 1, 1),
        ("fit", LENGTHS[0], 1),
        ("all", LENGTHS[2], 3),
    ],
)
def test_a_policy_keeps_its_turns(policy, limit, kept):
    text = text_of_bytes()
    assert text.conversation(THREE, 0, policy, limit) == text.conversation(THREE[:kept], 0)


@pytest.mark.parametrize(
    ("policy", "limit"), [("first", LENGTHS[0] - 1), ("fit", LENGTHS[0] - 1), ("all", LENGTHS[2] - 1)]
)
def test_what_does_not_fit_is_too_long(policy, limit):
    with pytest.raises(SkipSample, match=r"^too long$"):
        text_of_bytes().conversation(THREE, 0, policy, limit)


@pytest.mark.parametrize("policy", ["first", "fit", "all"])
def test_a_turn_without_words_has_no_answer(policy):
    with pytest.raises(SkipSample, match=r"^no answer$"):
        text_of_bytes().conversation([Turn("a", " \n")], 0, policy, 1000)
    with pytest.raises(SkipSample, match=r"^no turn$"):
        text_of_bytes().conversation([], 0, policy, 1000)


def test_a_missing_answer_beyond_what_is_kept_does_no_harm():
    turns = [Turn("a", "b"), Turn("c", "")]
    text = text_of_bytes()
    assert text.conversation(turns, 0, "first", 1000) == text.conversation(turns, 0, "fit", LENGTHS[0])
    with pytest.raises(SkipSample, match="no answer"):
        text.conversation(turns, 0, "all", 1000)


@pytest.mark.parametrize(
    ("turns", "images_kept"),
    [
        ([Turn("<image> a", "b"), Turn("<image> c", "d")], 1),
        ([Turn("a", "b"), Turn("<image> c <image>", "d")], 0),
        ([Turn("a", "b"), Turn("c", "d")], 2),
    ],
)
def test_turns_left_out_take_their_pictures_with_them(turns, images_kept):
    text = text_of_bytes()
    first, fit = (text.conversation(turns, 2, policy, LENGTHS[0] + 1) for policy in ("first", "fit"))
    assert first == fit
    assert len(first.image_at) == images_kept


def test_marks_of_a_chat_are_special_whatever_the_tokenizer_calls_them():
    """As Llama 3's: added as special tokens, and neither beginning nor end of text."""
    tokenizer = bpe_tokenizer("</s>", CHATML)
    as_named = TextFormat(bpe_tokenizer("<|im_end|>", CHATML), "tokenizer").conversation(PAIR, 0)
    tokenizer._special_tokens_map.pop("additional_special_tokens", None)
    tokenizer._extra_special_tokens = []
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") not in tokenizer.all_special_ids
    assert TextFormat(tokenizer, "tokenizer").conversation(PAIR, 0).ids == as_named.ids


def test_a_space_that_the_tokenizer_adds_by_itself_is_not_said_twice():
    """As Llama 2's tokenizer, which puts a space before everything it reads."""
    text = TextFormat(sentencepiece_tokenizer(), "question_answer")
    tokens = text.conversation([Turn("ab?", "ba")], 0)
    whole = text.tokenizer("Question: ab? Answer: ba", add_special_tokens=False)["input_ids"]
    assert tokens.ids[:-1] == whole
    answer = [token for token, said in zip(tokens.ids, tokens.supervised, strict=True) if said]
    assert text.tokenizer.convert_ids_to_tokens(answer)[0] == "\u2581ba"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", r"^the template cannot be rendered, line 1: Unexpected end of template"),
        ("{{ raise_exception('no system, please') }}", r"^the template cannot be rendered: no system, please$"),
        ("{{ 1 + 'a' }}", r"^the template cannot be rendered: unsupported operand"),
    ],
)
def test_a_template_that_cannot_be_rendered_says_why(tmp_path, template, message):
    (tmp_path / "broken.jinja").write_text(template)
    with pytest.raises(ConfigError, match=message):
        TextFormat(byte_tokenizer(), str(tmp_path / "broken.jinja"))


def test_a_template_is_text(tmp_path):
    (tmp_path / "binary.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"^template '.*binary\.jinja' is not text in UTF-8$"):
        TextFormat(byte_tokenizer(), str(tmp_path / "binary.jinja"))


def test_of_several_chat_templates_the_default_one_is_meant():
    tokenizer = bpe_tokenizer("<|im_end|>", {"default": CHATML, "tools": "no"})
    assert TextFormat(tokenizer, "tokenizer").template == CHATML
    tokenizer.chat_template = {"rag": CHATML, "tools": "no"}
    with pytest.raises(
        ConfigError, match=r"several chat templates \(rag, tools\) and none called default; save the one"
    ):
        TextFormat(tokenizer, "tokenizer")


def test_a_template_that_never_ends_a_turn_is_refused(tmp_path):
    (tmp_path / "endless.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    with pytest.raises(ConfigError, match=r"could not learn to stop; write \{\{ eos_token \}\} behind them"):
        TextFormat(byte_tokenizer(), str(tmp_path / "endless.jinja"))


def test_a_template_that_leaves_out_messages_is_refused(tmp_path):
    (tmp_path / "last.jinja").write_text("{{ messages[-1].content }}{{ eos_token }}")
    with pytest.raises(ConfigError, match="leaves out or reorders messages"):
        TextFormat(byte_tokenizer(), str(tmp_path / "last.jinja"))


def test_a_tokenizer_without_a_template_says_what_to_use():
    with pytest.raises(ConfigError, match="has no chat template; use question_answer or a Jinja file"):
        TextFormat(byte_tokenizer(), "tokenizer")


def test_an_unknown_template_says_what_was_expected():
    with pytest.raises(ConfigError, match="'chatlm': expected question_answer, tokenizer, or the path of a Jinja file"):
        TextFormat(byte_tokenizer(), "chatlm")


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused():
    config = tiny_model().blueprint.language_decoder.config
    with pytest.raises(ConfigError, match="the tokenizer has 257 tokens, the decoder's embedding only vocab_size=256"):
        load_text_format(config, vocab_size=256)


def test_a_tokenizer_is_read_from_a_folder(tmp_path):
    bpe_tokenizer("<|im_end|>", CHATML).save_pretrained(str(tmp_path))
    config = tiny_model().blueprint.language_decoder.config
    config = config.model_copy(update={"tokenizer": str(tmp_path), "template": "tokenizer"})
    text = load_text_format(config, vocab_size=500)
    turns = [Turn("What <|im_end|>?", "red")]
    assert text.conversation(turns, 0) == TextFormat(bpe_tokenizer("<|im_end|>", CHATML), "tokenizer").conversation(
        turns, 0
    )


def test_every_byte_is_a_token():
    tokenizer = byte_tokenizer()
    for words in ("plain", "Ä 猫 🐈", "\x00\t\n"):
        ids = tokenizer(words)["input_ids"]
        assert len(ids) == len(words.encode())
        assert tokenizer.decode(ids) == words
