"""MMStar: 1,500 multiple-choice questions that cannot be answered without looking at the picture (benchmark only).

Source: Chen et al. 2024, arXiv 2403.20330; https://huggingface.co/datasets/Lin-Chen/MMStar

Beside the accuracy (strict, see ``answer_letter``), its interval and the table by 6 categories and 18 subcategories:

* ``upstream_accuracy``, ``upstream_ci95``: the same replies under nanoVLM v0.1's looser rule (see ``says_letter``), to
  compare with its 35.3 %;
* ``answered``: the share of replies that choose a letter at all;
* ``gain`` (the paper's multi-modal gain): the accuracy with the pictures minus the accuracy without;
* ``leakage`` (the paper's multi-modal leakage): how far the accuracy without the pictures exceeds the one that the
  language decoder had before it was trained, at least 0. A decoder that was never taught to answer with a letter gets
  near 0 there, and the leakage is then an upper bound: the paper shows language models two solved questions first.

The last two are known at the end of a run, where the controls are asked.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from string import ascii_uppercase
from typing import Any, Self

from nanovlm import Benchmark, ComponentConfig, Sample, SkipSample, Turn, hookimpl
from nanovlm.data.dataset import Split
from nanovlm.data.huggingface import Columns, load_rows, one_colour, picture
from nanovlm.evaluation.evaluator import Item
from nanovlm.evaluation.metrics import accuracy, wilson_interval

# a source without l2_category has no subcategories
COLUMNS: Columns = {"question": "text", "image": "pictures", "answer": "text", "category": "text"}
ASKED = "Answer with the letter."  # as The Cauldron asks, which the models were trained on


class MMStar(Benchmark):
    class Config(ComponentConfig):
        source: str = "Lin-Chen/MMStar"
        """A hub id, a folder of the same form, or `tiny`: two questions that come with the plugin, for tests."""
        known_sizes = {"Lin-Chen/MMStar": 42_000_000}

        @classmethod
        def tiny(cls) -> Self:
            return cls(source="tiny")

    max_new_tokens = 16  # "The correct answer is (B)." and some more
    bare_decoder = True

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
        labels = row["category"], row.get("l2_category")
        sample = Sample([], [Turn(question, answer)], self.id(index), choices, *labels)
        if not choices:
            raise SkipSample("no options", sample)
        if answer not in choices:
            raise SkipSample("the answer is no option", sample)
        try:
            return replace(sample, images=[picture(row["image"])])
        except SkipSample as skip:
            raise SkipSample(skip.reason, sample) from None

    def prompt(self, sample: Sample) -> str:
        return f"{sample.turns[0].user}\n{ASKED}"

    def score(self, prediction: str, sample: Sample) -> float:
        """1 if the prediction says the right letter and no other one (see ``answer_letter``)."""
        return float(answer_letter(prediction, sample.choices or ()) == sample.turns[0].assistant)

    def measures(self, items: Sequence[Item], controls: Mapping[str, float]) -> dict[str, Any]:
        """See the top of this file."""
        asked = accuracy([item.score for item in items])
        letters = [answer_letter(item.prediction, option_letters(item.question)) for item in items]
        loosely = [float(says_letter(item.prediction, item.answer)) for item in items]
        figures: dict[str, Any] = {
            "upstream_accuracy": accuracy(loosely),
            "upstream_ci95": list(wilson_interval(loosely)),
            "answered": accuracy([letter is not None for letter in letters]),
        }
        if "no_image" in controls:
            figures["gain"] = asked - controls["no_image"]
        if "bare_decoder" in controls:
            figures["leakage"] = max(0.0, controls["no_image"] - controls["bare_decoder"])
        return figures


def open_rows(source: str) -> Sequence[dict[str, Any]]:
    return tiny_rows() if source == "tiny" else load_rows(source, None, "val", COLUMNS)


def tiny_rows() -> list[dict[str, Any]]:
    """Two rows as the dataset has them."""
    labels = {"category": "coarse perception", "l2_category": "image style & quality"}
    question = "What colour is this?\nOptions: A: green, B: red, C: blue, D: grey"
    return [
        {"question": question, "image": one_colour(colour), "answer": letter} | labels
        for letter, colour in (("B", "red"), ("C", "blue"))
    ]


OPTION = re.compile(r"(?<!\w)\(?([A-Z])(?:[:)]|\.(?=\s|$))")  # "A: a cat", "A. a cat", "A) a cat", "(A) a cat"


def option_letters(question: str) -> list[str]:
    """The letters of a question's options, from A on without a gap; none if there are not at least two."""
    found = set(OPTION.findall(question))
    letters = "".join(takewhile(found.__contains__, ascii_uppercase))
    return list(letters) if len(letters) > 1 else []


CHOSEN = r"(?i:(?:the\s+)?(?:correct\s+|right\s+|best\s+)?(?:answer|option|choice)(?:\s+is)?\s*:?\s*)"
OPENED, CLOSED = r"[(\[*'\"]*", r"[)\]*'\"]*"
ENDED = rf"{CLOSED}(?=\s*$|\n|[)\]]|[.:,;](?:\W|$))"
LETTER = re.compile(rf"(?:{CHOSEN})?{OPENED}([A-Z]){ENDED}")
SMALL = re.compile(rf"{OPENED}([a-z]){CLOSED}[.:]?$")
OTHER = re.compile(
    r"(?<!\w)([A-Z])(?:[:)]|\.\s+\w)|(?:[,;/\n]|\band|\bor)\s*\(?([A-Z])(?![\w'])"  # "B: a dog", ", B"
    rf"|{CHOSEN}{OPENED}([A-Z]){ENDED}"  # "The answer is B"
    rf"|[.:!?]\s+{OPENED}([A-Z]){CLOSED}\.?\s*$"  # "No. B"
)


def answer_letter(prediction: str, choices: Sequence[str]) -> str | None:
    """The letter that a prediction answers with, or None. Strict, so that no sentence is taken for a letter:

    * the letter comes first, or after "Answer:", "The answer is", "Option" and the like;
    * it is a capital, and a punctuation mark or the end follows: "B", "B.", "(B)", "B: a cat", "The answer is B.";
      a small letter counts only alone ("b"). In "A dog is ..." the A is an article;
    * no other option follows in the same way, or alone at the end: "A: a cat, B: a dog" repeats the options, "A, B",
      "A. The answer is B" and "A: no. B" choose neither.
    """
    text = prediction.strip()
    match = LETTER.match(text) or SMALL.match(text)
    if not match or (letter := match[1].upper()) not in choices:
        return None
    others = {found for pair in OTHER.findall(text[match.end(1) :]) for found in pair}
    return None if others & (set(choices) - {letter}) else letter


def says_letter(prediction: str, letter: str) -> bool:
    """nanoVLM v0.1's looser rule: the right letter stands anywhere as a word, or anywhere within parentheses.

    Only the right one is looked for: "A or B" is right whatever the answer, and so is "A dog" where it is A. Within
    parentheses a part of a word will do: "(Bees)" says B.
    """
    capital = re.escape(letter)
    return bool(letter) and re.search(rf"\b{capital}\b|\(.*{capital}.*\)", prediction) is not None


@hookimpl
def register_datasets(register):
    register("mmstar", MMStar)
