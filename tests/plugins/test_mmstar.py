import pickle

import datasets
import pytest
from datasets import Image, Value
from hf_folder import cell, encoded, write_dataset
from nanovlm_plugins.mmstar import answer_letter, option_letters
from tiny import tiny_model

from nanovlm import ConfigError, DataError, SkipSample, Turn
from nanovlm.blueprint import Part, open_benchmark, open_dataset
from nanovlm.evaluation.evaluator import Questions

FOUR = "Which one?\nOptions: A: cat, B: dog, C: cow, D: hen"
FEATURES = {
    "index": Value("int64"),
    "question": Value("string"),
    "image": Image(),
    "answer": Value("string"),
    "category": Value("string"),
}


def row(answer: str | None = "B", question: str | None = FOUR, category: str | None = "logic", image="red") -> dict:
    image = cell(image) if isinstance(image, str) else image
    return {"index": 0, "question": question, "image": image, "answer": answer, "category": category}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def open_rows(registries, tmp_path):
    """The benchmark with these rows, opened as a run does."""

    def open_rows(*rows: dict, features=FEATURES, split: str = "val"):
        source = write_dataset(tmp_path / "source", {"default": list(rows)}, features, split)
        return open_benchmark(Part.of(registries.datasets, "benchmarks.0", "mmstar", {"source": str(source)}))

    return open_rows


def test_a_row_becomes_a_question_with_its_options(open_rows):
    benchmark = open_rows(row("B"), row(" C ", category="maths", image="blue"))
    first, second = benchmark[0], benchmark[1]
    assert first.images == [encoded("red")]  # still encoded
    assert (first.id, first.turns, first.choices, first.category) == ("mmstar/0", [Turn(FOUR, "B")], [*"ABCD"], "logic")
    assert (second.id, second.turns, second.category) == ("mmstar/1", [Turn(FOUR, "C")], "maths")
    assert [benchmark.id(i) for i in range(len(benchmark))] == ["mmstar/0", "mmstar/1"]
    assert benchmark.prompt(first) == f"{FOUR}\nAnswer with the letter."
    assert benchmark.answer(first) == "B"


def test_it_travels_to_a_worker(open_rows):
    benchmark = open_rows(row("B"), row("C"))
    travelled = pickle.loads(pickle.dumps(benchmark))
    assert [travelled[i] for i in range(2)] == [benchmark[i] for i in range(2)]


def test_there_is_nothing_to_train_on(registries):
    part = Part.of(registries.datasets, "data.train.0", "mmstar", {"source": "tiny"})
    with pytest.raises(
        DataError,
        match=r"^data\.train\.0: mmstar has no sample in its train split; `nanovlm list mmstar` shows its options$",
    ):
        open_dataset(part, "train")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (row(question="What is this?"), "no options"),
        (row(question=None), "no options"),
        (row("E"), "the answer is no option"),
        (row(""), "the answer is no option"),
        (row(None), "the answer is no option"),
        (row(image=None), "no picture"),
    ],
)
def test_a_row_that_cannot_be_asked_is_skipped(open_rows, broken, reason):
    benchmark = open_rows(broken)
    with pytest.raises(SkipSample, match=f"^{reason}$"):
        benchmark[0]


def test_what_is_skipped_is_counted_and_wrong(open_rows, monkeypatch):
    picture = {"bytes": b"no picture", "path": None}
    benchmark = open_rows(row("B"), row(question="What is this?"), row("C"), row("B", image=picture), row(None))
    monkeypatch.setattr("nanovlm.evaluation.evaluator.generate", lambda model, prompts, *_: ["B"] * len(prompts))
    summary = Questions("mmstar", benchmark).evaluate(tiny_model(), controls=False).summary()
    assert summary["questions"] == 5
    assert summary["accuracy"] == 1 / 5
    assert summary["skipped"] == {"no options": 1, "undecodable picture": 1, "the answer is no option": 1}


def test_accuracies_are_by_category(open_rows, monkeypatch):
    rows = [row("B"), row("B", category="maths"), row("C", category="maths"), row("B", category=None)]
    benchmark = open_rows(*rows)
    monkeypatch.setattr("nanovlm.evaluation.evaluator.generate", lambda model, prompts, *_: ["B"] * len(prompts))
    summary = Questions("mmstar", benchmark).evaluate(tiny_model(), controls=False).summary()
    assert summary["categories"] == {"logic": 1.0, "maths": 0.5}
    assert summary["accuracy"] == 3 / 4


def test_rows_of_another_form_are_refused(open_rows):
    features = {"question": Value("string"), "image": Image(), "solution": Value("string")}
    with pytest.raises(DataError) as caught:
        open_rows({"question": FOUR, "image": None, "solution": "B"}, features=features)
    message = str(caught.value)
    assert message.startswith("benchmarks.0: source: the rows of ")
    assert "have no answer, category; expected are question, image, answer, category, and there are" in message
    assert message.endswith("and there are question, image, image.bytes, image.path, solution")


def test_a_source_without_the_split_is_refused(open_rows):
    with pytest.raises(
        DataError, match=r"^benchmarks\.0: source: '.*' cannot be read as a dataset \(ValueError: .*val"
    ):
        open_rows(row(), split="train")


def test_without_rows_there_is_nothing_to_ask(open_rows):
    with pytest.raises(
        DataError,
        match=r"^benchmarks\.0: mmstar has no sample in its test split; `nanovlm list mmstar` shows its options$",
    ):
        open_rows()


def test_a_source_that_is_not_to_be_had_says_what_was_tried(registries):
    part = Part.of(registries.datasets, "benchmarks.0", "mmstar", {})
    with pytest.raises(ConfigError) as caught:
        open_benchmark(part)
    first, second = str(caught.value).splitlines()
    assert first.startswith("benchmarks.0.source: 'Lin-Chen/MMStar' is no folder here, and it is not in the cache")
    assert second == "  Without network, point it at a folder: benchmarks.0.source=FOLDER"


@pytest.mark.parametrize(
    ("question", "letters"),
    [
        (FOUR, "ABCD"),
        ("Which?\nOptions: A: one, B: two", "AB"),
        ("Which?\nA. one\nB. two\nC. three", "ABC"),
        ("Which?\nA) one B) two C) three", "ABC"),
        ("Which?\n(A) one (B) two (C) three (D) four", "ABCD"),
        ("Which?\n(A): one\n(B): two", "AB"),
        ("Options: A: 1.5, B: 2.5, C: U.S., D: D.C.", "ABCD"),
        ("Which?\nA:one\nB:two", "AB"),
        ("Is point C: or D: nearer?", ""),  # not from A on
        ("Options: A: one", ""),  # no choice
        ("Options: A: one, B: two, D: four", "AB"),  # up to the gap
        ("What does A say to B?", ""),
        ("NASA: what is it? (see MAP)", ""),
        ("", ""),
    ],
)
def test_options_are_found_in_every_punctuation(question, letters):
    assert option_letters(question) == [*letters]


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        (" B \n", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("[B]", "B"),
        ("**B**", "B"),
        ("'B'.", "B"),
        ("b", "B"),
        ("(b).", "B"),
        ("A", "A"),
        ("A.", "A"),
        ("D:", "D"),
        ("B: dog", "B"),
        ("B) dog", "B"),
        ("(B) dog", "B"),
        ("B. A dog.", "B"),
        ("B. A dog and a cat.", "B"),
        ("A: A cat", "A"),
        ("B, I think", "B"),
        ("B; no doubt", "B"),
        ("B\nbecause it barks", "B"),
        ("B\n\nQuestion: what", "B"),
        ("Answer: B", "B"),
        ("Answer:\nB", "B"),
        ("answer B", "B"),
        ("The answer is B.", "B"),
        ("The answer is (B) dog.", "B"),
        ("The correct answer is: B", "B"),
        ("the best option is **B**.", "B"),
        ("Option B", "B"),
        ("Choice B: dog", "B"),
    ],
)
def test_a_letter_is_understood_however_it_is_put(reply, letter):
    assert answer_letter(reply, "ABCD") == letter


@pytest.mark.parametrize(
    "reply",
    [
        "",
        " ",
        ".",
        "dog",
        "A dog",
        "A dog is here.",
        "a dog",
        "Because it barks",
        "BB",
        "B2",
        "B's dog",
        "C.5",
        "U.S.",
        "E",
        "E.",
        "The answer is a dog.",
        "The answer is A dog.",
        "The answer is not B",
        "Not B",
        "None of them",
        "It might be B",
        "A: cat, B: dog, C: cow, D: hen",
        "A. cat B. dog C. cow D. hen",
        "A. cat\nB. dog",
        "A) cat B) dog",
        "(A) cat (B) dog",
        "Options: A: cat, B: dog",
        "A, B",
        "A and B",
        "A or B",
        "A/B",
        "A\nB",
        "B or C?",
        "(A) or (B)",
        "Both A and B",
        "B. The cat (A) is wrong",
    ],
)
def test_what_is_no_choice_is_no_letter(reply):
    assert answer_letter(reply, "ABCD") is None


@pytest.mark.parametrize("reply", ["E", "A, E", "A: one, E: five"])
def test_a_letter_that_is_no_option_neither_answers_nor_disturbs(reply):
    assert answer_letter(reply, "ABCD") == ("A" if reply[0] == "A" else None)


def test_the_score_is_one_for_the_right_letter_alone(open_rows):
    benchmark = open_rows(row("B"))
    replies = ["B", "The answer is B.", "C", "dog", "A dog", "B or C", ""]
    assert [benchmark.score(reply, benchmark[0]) for reply in replies] == [1, 1, 0, 0, 0, 0, 0]
