"""Your own pictures: conversations, or captions, one JSON object a line.

    {"images": ["cats/tom.jpg"], "turns": [{"user": "Who is this?", "assistant": "Tom."}]}
    {"file_name": "cats/tom.jpg", "text": "Tom sleeps on the sofa."}

A line of the second form is short for one turn that asks for a caption. ``source`` is a ``.jsonl`` file, or a folder:
then ``train.jsonl`` is trained on, or else ``metadata.jsonl`` (as Hugging Face's ``imagefolder`` has it), and
``test.jsonl`` is asked and scored as a benchmark. Pictures are named relative to the file's folder and lie within it.
Every line is checked before anything starts.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field

from nanovlm import Benchmark, ComponentConfig, ConfigError, DataError, Sample, Turn, hookimpl
from nanovlm.components import Schema, parse
from nanovlm.data.conversation import IMAGE_MARK
from nanovlm.data.dataset import Split
from nanovlm.data.huggingface import one_colour, picture
from nanovlm.data.images import ImageSource

FILES = {"train": ("train.jsonl", "metadata.jsonl"), "test": ("test.jsonl",)}
FORMS = (
    '{"images": ["a.jpg"], "turns": [{"user": "Who is this?", "assistant": "Tom."}]} '
    'or {"file_name": "a.jpg", "text": "Tom sleeps."}'
)
SHOWN = 5  # lines in one message: a file that is wrong is often wrong everywhere


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("there are no words, so there is nothing to learn")
    return text


Words = Annotated[str, AfterValidator(_not_empty)]


class Exchange(Schema):
    user: str
    """What is asked. `<image>` marks a picture's place: as many as there are pictures in all turns, or none."""
    assistant: Words
    """What is answered."""


class Conversation(Schema):
    turns: Annotated[list[Exchange], Field(min_length=1)]
    """The conversation: a list of {"user": ..., "assistant": ...}."""
    images: list[str] = []
    """The pictures that it is about: paths relative to the file's folder."""
    id: str = ""
    """A name of its own; by default the file's name and the line's number."""
    category: str = ""
    """For the benchmark's table."""


class Caption(Schema):
    file_name: str
    """The picture: a path relative to the file's folder."""
    text: Words
    """What it shows."""


class JsonLines(Benchmark):
    class Config(ComponentConfig):
        source: str
        """A `.jsonl` file, a folder with one, or `tiny`: a few lines that come with the plugin, for tests."""
        caption_prompt: str = "Describe the picture."
        """What is asked where a line has only a caption."""
        max_new_tokens: Annotated[int, Field(ge=1)] = 32
        """The longest answer as a benchmark, in tokens."""

        @classmethod
        def tiny(cls) -> Self:
            return cls(source="tiny")

        def resolved(self) -> Self:
            if self.source != "tiny" and not Path(self.source).expanduser().exists():
                raise ConfigError(f"source: there is no file and no folder {self.source!r} (looked in {Path.cwd()})")
            return self

    def __init__(self, config: Config, split: Split) -> None:
        self.max_new_tokens = config.max_new_tokens
        self.samples = tiny_samples(split) if config.source == "tiny" else read(config, split)

    def __len__(self) -> int:
        return len(self.samples)

    def id(self, index: int) -> str:
        return self.samples[index].id

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def read(config: JsonLines.Config, split: Split) -> list[Sample]:
    """All lines of the split's file; a DataError tells the first few that are wrong."""
    file = find(config.source, split)
    samples: dict[str, Sample] = {}
    problems = []
    for number, line in lines(file):
        try:
            sample = to_sample(parse_line(line, f"line {number}"), file, number, config.caption_prompt)
            if split == "test" and len(sample.turns) > 1:
                raise DataError(f"line {number}: a question of a benchmark has one turn, not {len(sample.turns)}")
            if sample.id in samples:
                raise DataError(f"line {number}: the id {sample.id!r} stands on an earlier line, too")
            samples[sample.id] = sample
        except (ConfigError, DataError) as error:
            problems.append(str(error))
    if problems:
        more = [f"and {len(problems) - SHOWN} more lines"] if len(problems) > SHOWN else []
        told = indent("\n".join(problems[:SHOWN] + more), "  ")
        raise DataError(f"source: {str(file)!r} is not as it should be:\n{told}")
    if not samples:
        raise DataError(f"source: {str(file)!r} has no line")
    return list(samples.values())


def find(source: str, split: Split) -> Path:
    """The file that holds a split; ConfigError if there is none."""
    path = Path(source).expanduser()
    if path.is_file():
        if split == "test":
            raise ConfigError(
                f"source: {source!r} is a file, and trained on; for a benchmark name a folder with test.jsonl"
            )
        return path
    for name in FILES[split]:
        if (path / name).is_file():
            return path / name
    raise ConfigError(
        f"source: the folder {source!r} has no {' and no '.join(FILES[split])}, whose lines look like {FORMS}"
    )


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    try:
        with file.open(encoding="utf-8-sig") as text:
            for number, line in enumerate(text, start=1):
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise DataError(f"source: {str(file)!r} is not text in UTF-8 ({error.reason})") from None


def parse_line(line: str, where: str) -> Conversation | Caption:
    """Raises ConfigError or DataError that begins with ``where``."""
    try:
        content: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError):
        raise DataError(f"{where} cannot be read: a number is too long, or brackets stand too deep") from None
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(f"{where} holds {half}, half of a character: write both halves, or the character") from None
    if isinstance(content, dict) and "file_name" in content:
        return parse(Caption, content, where)
    if isinstance(content, dict) and "turns" not in content:
        raise DataError(f"{where} has neither turns nor file_name: write {FORMS}")
    return parse(Conversation, content, where)


def to_sample(line: Conversation | Caption, file: Path, number: int, caption_prompt: str) -> Sample:
    own_id = f"{file.name}:{number}"  # without the folder: moving the data must not change what is held out
    if isinstance(line, Caption):
        images = [locate(line.file_name, file.parent, f"line {number}.file_name")]
        sample = Sample(images, [Turn(caption_prompt, line.text)], own_id)
    else:
        images = [locate(name, file.parent, f"line {number}.images.{i}") for i, name in enumerate(line.images)]
        turns = [Turn(turn.user, turn.assistant) for turn in line.turns]
        sample = Sample(images, turns, line.id or own_id, category=line.category or None)
    marks = sum(turn.user.count(IMAGE_MARK) for turn in sample.turns)
    if marks not in (0, len(images)):
        raise DataError(
            f"line {number}: the user's words have {marks} {IMAGE_MARK}, but there are {len(images)} pictures; "
            f"write one {IMAGE_MARK} for each picture, or none and all come first"
        )
    return sample


def locate(name: str, folder: Path, where: str) -> ImageSource:
    """The path of a picture; DataError if it is not in the folder, by whatever links."""
    try:
        path = (folder / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a name too long or with a null character
        raise DataError(f"{where}={name!r} is no path: {error}") from None
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"{where}={name!r} leads out of the data folder: put the picture into {str(folder)!r}")
    if not path.is_file():
        raise DataError(f"{where}={name!r}: there is no such file in {str(folder)!r}")
    return str(path)


def tiny_samples(split: Split) -> list[Sample]:
    """A conversation with a picture, and one without; other ones in each split."""
    first, second = ("red", "blue") if split == "train" else ("lime", "black")
    seen = Sample([picture(one_colour(first))], [Turn("What colour?", f"{first}.")], f"tiny/{first}")
    return [seen, Sample([], [Turn("Name a colour.", f"{second}.")], f"tiny/{second}")]


@hookimpl
def register_datasets(register):
    register("jsonl", JsonLines)
