"""MMStar: 1,500 multiple-choice questions that cannot be answered without looking at the picture (benchmark only).

Source: Chen et al. 2024, arXiv 2403.20330; https://huggingface.co/datasets/Lin-Chen/MMStar
"""

import re
from collections.abc import Sequence
from itertools import takewhile
from string import ascii_uppercase
from typing import Any, Self

from nanovlm import Benchmark, ComponentConfig, Sample, SkipSample, Turn, hookimpl
from nanovlm.components import Split
from nanovlm.data.huggingface import load_rows, one_colour, picture

COLUMNS = ("question", "image", "answer", "category")
ASKED = "Answer with the letter."  # as The Cauldron asks, which the models were trained on


class MMStar(Benchmark):
    class Config(ComponentConfig):
        source: str = "Lin-Chen/MMStar"
        """A hub id, a folder of the same form, or `tiny`: two questions that come with the plugin, for tests."""

        @classmethod
        def tiny(cls) -> Self:
            return cls(source="tiny")

    max_new_tokens = 16  # "The correct answer is (B)." and some more

    def __init__(self, config: Config, split: Split) -> None:
        self.rows = open_rows(config.source) if split == "test" else []

    def __len__(self) -> int:
        return len(self.rows)

    def id(self, index: int) -> str:
        return f"mmstar/{index}"

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        question, answer = row["question"] or "", (row["answer"] or "").strip()
        choices = option_letters(question)
        if not choices:
            raise SkipSample("no options")
        if answer not in choices:
            raise SkipSample("the answer is no option")
        return Sample([picture(row["image"])], [Turn(question, answer)], self.id(index), choices, row["category"])

    def prompt(self, sample: Sample) -> str:
        return f"{sample.turns[0].user}\n{ASKED}"

    def score(self, prediction: str, sample: Sample) -> float:
        """1 if the prediction says the right letter and no other one (see ``answer_letter``)."""
        return float(answer_letter(prediction, sample.choices or ()) == sample.turns[0].assistant)


def open_rows(source: str) -> Sequence[dict[str, Any]]:
    return tiny_rows() if source == "tiny" else load_rows(source, None, "val", COLUMNS)


def tiny_rows() -> list[dict[str, Any]]:
    """Two rows as the dataset has them."""
    question = "What colour is this?\nOptions: A: green, B: red, C: blue, D: grey"
    return [
        {"question": question, "image": one_colour(colour), "answer": letter, "category": "coarse perception"}
        for letter, colour in (("B", "red"), ("C", "blue"))
    ]


OPTION = re.compile(r"(?<!\w)\(?([A-Z])(?:[:)]|\.(?=\s|$))")  # "A: a cat", "A. a cat", "A) a cat", "(A) a cat"


def option_letters(question: str) -> list[str]:
    """The letters of a question's options, from A on without a gap; none if there are not at least two."""
    found = set(OPTION.findall(question))
    letters = "".join(takewhile(found.__contains__, ascii_uppercase))
    return list(letters) if len(letters) > 1 else []


LEAD_IN = r"(?i:(?:the\s+)?(?:correct\s+|right\s+|best\s+)?(?:answer|option|choice)(?:\s+is)?\s*:?\s*)?"
OPENED, CLOSED = r"[(\[*'\"]*", r"[)\]*'\"]*"
LETTER = re.compile(rf"{LEAD_IN}{OPENED}([A-Z]){CLOSED}(?=\s*$|\n|[)\]]|[.:,;](?:\W|$))")
SMALL = re.compile(rf"{OPENED}([a-z]){CLOSED}[.:]?$")
OTHER = re.compile(r"(?<!\w)([A-Z])(?:[:)]|\.\s+\w)|(?:[,;/\n]|\band|\bor)\s*\(?([A-Z])(?![\w'])")


def answer_letter(prediction: str, choices: Sequence[str]) -> str | None:
    """The letter that a prediction answers with, or None. Strict, so that no sentence is taken for a letter:

    * the letter comes first, or after "Answer:", "The answer is", "Option" and the like;
    * it is a capital, and a punctuation mark or the end follows: "B", "B.", "(B)", "B: a cat", "The answer is B.";
      a small letter counts only alone ("b"). In "A dog is ..." the A is an article;
    * no other option follows in the same way: "A: a cat, B: a dog" repeats the options, "A, B" chooses neither.
    """
    text = prediction.strip()
    match = LETTER.match(text) or SMALL.match(text)
    if not match or (letter := match[1].upper()) not in choices:
        return None
    others = {found for pair in OTHER.findall(text[match.end(1) :]) for found in pair}
    return None if others & (set(choices) - {letter}) else letter


@hookimpl
def register_datasets(register):
    register("mmstar", MMStar)
