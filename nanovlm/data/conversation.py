"""Conversations to token ids, with a target only on what the assistant says and its end of turn.

Every template is a Jinja chat template. It is rendered with a mark in place of each message, so that what the template
wrote and what the data says never mix: the template's special tokens become ids, the same names in the data stay plain
text, and the assistant's words are known exactly (many chat templates cannot tell them, and lose every target).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanovlm.components import TextConfig
from nanovlm.data.dataset import Turn
from nanovlm.data.image_format import FORMATS, PLAIN, ImageFormat
from nanovlm.data.tokenizer import Tokenizer, load_tokenizer
from nanovlm.errors import ConfigError, SkipSample

QUESTION_ANSWER = (
    "{% for message in messages %}{% if message.role == 'user' %}Question: {{ message.content }} Answer:"
    "{% else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
IMAGE_MARK = "<image>"
_MARK = re.compile("\ue000([0-9]+)\ue001")  # private-use characters: in no template


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered conversation: a special token, plain text, or the place of a picture."""

    text: str
    supervised: bool = False
    special: bool = False
    image: bool = False
    ends_turn: bool = False


@dataclass(frozen=True)
class Tokens:
    """A tokenised conversation, before any image token is laid out.

    ids, supervised: each token, and whether the model learns to say it.
    image_at: for each picture, the index in ``ids`` before which it stands.
    """

    ids: list[int]
    supervised: list[bool]
    image_at: list[int]


class TextFormat:
    """A tokenizer, a template and an image format: text to ids for training and prompting, and ids to text."""

    def __init__(self, tokenizer: Tokenizer, template: str, image_format: ImageFormat = PLAIN) -> None:
        self.tokenizer, self.image_format = tokenizer, image_format
        self.template = read_template(template) or _own_template(tokenizer)
        self._written: dict[int, list[str]] = {}  # by the template, for each number of messages
        # A chat's marks are often special without being the tokenizer's beginning, end or the like.
        marks = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
        specials = sorted({*tokenizer.all_special_ids, *marks}, key=lambda i: (-len(tokenizer.decode([i])), i))
        self.special_ids = {tokenizer.decode([i]): i for i in specials}
        self._specials = re.compile(f"({'|'.join(map(re.escape, self.special_ids))})" if self.special_ids else "(?!)")
        # Tokenizers in the manner of SentencePiece put a space before whatever they are given.
        first = tokenizer.convert_ids_to_tokens(self._ids_of("a"))[0]
        self._puts_space = first.startswith("\u2581") and self._ids_of(" a")[1:] == self._ids_of("a")
        ends = [piece.text for piece in self._render([Turn("a", "b")] * 2, 0, marked=False) if piece.ends_turn]
        if not ends:
            raise ConfigError(
                f"template {template!r}: no special token follows the assistant's words, so a model could not "
                "learn to stop; write {{ eos_token }} behind them"
            )
        eos = {tokenizer.convert_tokens_to_ids(tokenizer.eos_token)} if tokenizer.eos_token else set()
        self.stop_ids = frozenset({self.special_ids[ends[0]]} | eos)

    def conversation(self, turns: Sequence[Turn], num_images: int, policy: str = "all", limit: int = 0) -> Tokens:
        """Token ids and what is supervised, up to the end of the last turn that ``policy`` keeps.

        policy: ``first`` turn, the leading turns that ``fit`` into ``limit`` tokens, or ``all`` (see experiment.Data).
        Raises SkipSample for a conversation without an answer, or one too long.
        """
        marked = _is_marked(turns, num_images)
        turns = turns[:1] if policy == "first" else turns
        if not turns:
            raise SkipSample("no turn")
        tokens, ends = self._tokenize(self._render(turns, num_images, marked))
        kept = [end for end in ends if not limit or end <= limit] if policy == "fit" else ends
        if not kept or (limit and kept[-1] > limit):
            raise SkipSample("too long")
        if not all(turn.assistant.strip() for turn in turns[: len(kept)]):
            raise SkipSample("no answer")
        end = kept[-1]
        return Tokens(tokens.ids[:end], tokens.supervised[:end], [at for at in tokens.image_at if at < end])

    def prompt(self, user: str, num_images: int) -> Tokens:
        """What stands before the assistant's words when the model is asked ``user``: a prefix of the conversation."""
        turns = [Turn(user, "")]
        pieces = self._render(turns, num_images, _is_marked(turns, num_images))
        before = next(i for i, piece in enumerate(pieces) if piece.supervised)
        return self._tokenize(pieces[:before])[0]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, up to the end of the turn."""
        kept = next((ids[:i] for i, token in enumerate(ids) if token in self.stop_ids), ids)
        return self.tokenizer.decode(list(kept), skip_special_tokens=True).strip()

    def _render(self, turns: Sequence[Turn], num_images: int, marked: bool) -> list[Piece]:
        """The conversation in pieces; neighbouring plain text of one kind is one piece, and tokenised together."""
        words = [text for turn in turns for text in (turn.user, turn.assistant)]
        written = self._around(len(words))
        if num_images and not marked and self.image_format.within_message:
            words[0], marked = IMAGE_MARK * num_images + words[0], True
        pictures = (self._picture(i, num_images) for i in range(num_images))
        pieces = [] if marked else [piece for picture in pictures for piece in picture]
        for i, content in enumerate(words):
            is_answer = i % 2 == 1
            opening = written[i]
            if is_answer:  # the space before an answer belongs to the answer
                stripped = opening.rstrip(" ")
                opening, content = stripped, opening[len(stripped) :] + content
            pieces += self._template_pieces(opening, after_answer=i > 0 and not is_answer)
            pieces += [Piece(content, True)] if is_answer else _user_pieces(content, marked, pictures)
        pieces += self._template_pieces(written[-1], after_answer=True)
        return list(_joined(pieces))

    def _picture(self, number: int, num_images: int) -> list[Piece]:
        """The place of one of a conversation's pictures, with what stands around it."""
        form = self.image_format
        return [
            Piece(form.number.format(number) if num_images > 1 else ""),
            *(Piece(marker, special=True) for marker in form.before),
            Piece("", image=True),
            *(Piece(marker, special=True) for marker in form.after),
        ]

    def _around(self, num_messages: int) -> list[str]:
        """What the template writes before each of so many messages, and behind the last.

        No word of the data is rendered, so it is the same for all conversations of that length, and rendered once.
        """
        if num_messages not in self._written:
            roles = ("user", "assistant")
            messages = [{"role": roles[i % 2], "content": f"\ue000{i}\ue001"} for i in range(num_messages)]
            parts = _MARK.split(self._apply(messages))  # template, message, template, message, ..., template
            if [int(i) for i in parts[1::2]] != list(range(num_messages)):
                raise ConfigError(
                    "the template leaves out or reorders messages, so what the assistant says cannot be found"
                )
            self._written[num_messages] = parts[::2]
        return self._written[num_messages]

    def _apply(self, messages: list[dict[str, str]]) -> str:
        """The rendered conversation; ConfigError for whatever the template stumbles over."""
        from jinja2 import TemplateError, TemplateSyntaxError

        try:
            rendered: str = self.tokenizer.apply_chat_template(messages, chat_template=self.template, tokenize=False)
        except (TemplateError, TypeError) as error:
            line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
            raise ConfigError(f"the template cannot be rendered{line}: {error}") from None
        return rendered

    def _template_pieces(self, text: str, after_answer: bool) -> Iterator[Piece]:
        """What the template wrote; behind an answer, everything up to the first special token is its end of turn."""
        ending = after_answer and bool(self._specials.search(text))
        for part in self._specials.split(text):
            special = part in self.special_ids
            if part:
                yield Piece(part, supervised=ending, special=special, ends_turn=ending and special)
            ending = ending and not special

    def _tokenize(self, pieces: Sequence[Piece]) -> tuple[Tokens, list[int]]:
        """The pieces' tokens, and where each turn ends."""
        tokens, ends = Tokens([], [], []), []
        for piece in pieces:
            if piece.image:
                tokens.image_at.append(len(tokens.ids))
                continue
            ids = [self.special_ids[piece.text]] if piece.special else self._plain_ids(piece.text)
            tokens.ids.extend(ids)
            tokens.supervised.extend([piece.supervised] * len(ids))
            if piece.ends_turn:
                ends.append(len(tokens.ids))
        return tokens, ends

    def _plain_ids(self, text: str) -> list[int]:
        """Ids of plain text within a conversation."""
        return self._ids_of(text[1:] if self._puts_space and text.startswith(" ") else text)

    def _ids_of(self, text: str) -> list[int]:
        """Ids of a text by itself, in which the names of special tokens mean nothing."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids


def _is_marked(turns: Sequence[Turn], num_images: int) -> bool:
    """Whether marks say where the pictures stand. Counted over the whole conversation, before any turn is left out."""
    marks = sum(turn.user.count(IMAGE_MARK) for turn in turns)
    if num_images and marks not in (0, num_images):
        raise SkipSample("picture marks and pictures differ in number")
    return num_images > 0 and marks > 0


def _user_pieces(text: str, marked: bool, pictures: Iterator[list[Piece]]) -> Iterator[Piece]:
    for i, part in enumerate(text.split(IMAGE_MARK) if marked else [text]):
        if i:
            yield from next(pictures)
        yield Piece(part)


def _joined(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Neighbours of plain text with the same supervision as one, empty ones left out."""
    plain: list[Piece] = []
    for piece in pieces:
        joins = not (piece.special or piece.image)
        if plain and not (joins and piece.supervised == plain[0].supervised):
            yield Piece("".join(part.text for part in plain), plain[0].supervised)
            plain = []
        if not joins:
            yield piece
        elif piece.text:
            plain.append(piece)
    if plain:
        yield Piece("".join(part.text for part in plain), plain[0].supervised)


def read_template(template: str) -> str:
    """The text of a template; empty if it is the tokenizer's own. ConfigError if it is no template."""
    if template in ("question_answer", "tokenizer"):
        return QUESTION_ANSWER if template == "question_answer" else ""
    if "{%" in template or "{{" in template:
        return template  # a checkpoint's own, which lies in no file
    file = Path(template)
    if not file.is_file():
        raise ConfigError(f"template {template!r}: expected question_answer, tokenizer, or the path of a Jinja file")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"template {template!r} is not text in UTF-8") from None


def _own_template(tokenizer: Tokenizer) -> str:
    own = tokenizer.chat_template
    if isinstance(own, dict):
        if "default" not in own:
            raise ConfigError(
                f"template 'tokenizer': the tokenizer has several chat templates ({', '.join(own)}) and none called "
                "default; save the one that is meant as a Jinja file, and name that"
            )
        own = own["default"]
    if not own:
        raise ConfigError(
            "template 'tokenizer': the tokenizer has no chat template; use question_answer or a Jinja file"
        )
    return own


def load_text_format(
    config: TextConfig, vocab_size: int, folder: Path | None = None, borrowed: bool = False
) -> TextFormat:
    """The tokenizer, template and image format of a decoder's config (see ``load_tokenizer``)."""
    tokenizer = load_tokenizer(config, vocab_size, folder, borrowed)
    return TextFormat(tokenizer, config.template, FORMATS[config.image_format])
