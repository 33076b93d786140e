import json
import pickle
import re
import shutil

import datasets
import pytest
from command import nanovlm
from datasets import Image, Value
from hf_folder import cell, encoded, write_dataset
from nanovlm_plugins.mmstar import MMStar, answer_letter, option_letters, says_letter
from tiny import tiny_experiment, tiny_model

from nanovlm import ConfigError, DataError, SkipSample, Turn, train
from nanovlm.blueprint import Part, open_benchmark, open_dataset
from nanovlm.evaluation.evaluator import Item, Questions, read_items

FOUR = "Which one?\nOptions: A: cat, B: dog, C: cow, D: hen"
FEATURES = {
    "index": Value("int64"),
    "question": Value("string"),
    "image": Image(),
    "answer": Value("string"),
    "category": Value("string"),
    "l2_category": Value("string"),
}


def row(
    answer: str | None = "B",
    question: str | None = FOUR,
    category: str | None = "logic",
    image="red",
    l2_category: str | None = "diagrams",
) -> dict:
    image = cell(image) if isinstance(image, str) else image
    labels = {"category": category, "l2_category": l2_category}
    return {"index": 0, "question": question, "image": image, "answer": answer, **labels}


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
    assert first.subcategory == "diagrams"
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
    with pytest.raises(SkipSample, match=f"^{reason}$") as caught:
        benchmark[0]
    assert (caught.value.sample.category, caught.value.sample.subcategory) == ("logic", "diagrams")


def test_what_is_skipped_is_counted_and_wrong(open_rows, monkeypatch):
    picture = {"bytes": b"no picture", "path": None}
    benchmark = open_rows(row("B"), row(question="What is this?"), row("C"), row("B", image=picture), row(None))
    monkeypatch.setattr("nanovlm.evaluation.evaluator.generate", lambda model, prompts, *_: ["B"] * len(prompts))
    summary = Questions("mmstar", benchmark).evaluate(tiny_model(), controls=False).summary()
    assert summary["questions"] == 5
    assert summary["accuracy"] == 1 / 5
    assert summary["skipped"] == {"no options": 1, "undecodable picture": 1, "the answer is no option": 1}


@pytest.fixture
def says_b(monkeypatch):
    """Every model answers B."""
    monkeypatch.setattr("nanovlm.evaluation.evaluator.generate", lambda model, prompts, *_: ["B"] * len(prompts))


def test_accuracies_are_by_category_and_subcategory(open_rows, says_b):
    maths = {"category": "maths"}
    rows = [row(), row(**maths, l2_category="sums"), row("C", **maths), row(category=None, l2_category=None)]
    summary = Questions("mmstar", open_rows(*rows)).evaluate(tiny_model(), controls=False).summary()
    assert summary["accuracy"] == 3 / 4
    assert summary["categories"] == {"logic": 1.0, "maths": 0.5}
    assert summary["subcategories"] == {"logic/diagrams": 1.0, "maths/diagrams": 0.0, "maths/sums": 1.0}
    assert summary["questions_by_category"] == {
        "logic": 1, "logic/diagrams": 1, "maths": 2, "maths/diagrams": 1, "maths/sums": 1,
    }  # fmt: skip


def test_what_cannot_be_asked_counts_in_its_category(open_rows, says_b):
    picture = {"bytes": b"no picture", "path": None}
    broken = [row(image=None), row(image=picture), row(question="What is this?"), row(None)]
    summary = Questions("mmstar", open_rows(row(), *broken)).evaluate(tiny_model(), controls=False).summary()
    assert sum(summary["skipped"].values()) == len(broken)
    assert summary["subcategories"] == {"logic/diagrams": 1 / 5}
    assert summary["questions_by_category"] == {"logic": 5, "logic/diagrams": 5}


def test_a_source_without_subcategories_has_a_table_of_categories(open_rows, says_b):
    features = {key: value for key, value in FEATURES.items() if key != "l2_category"}
    summary = Questions("mmstar", open_rows(row(), features=features)).evaluate(tiny_model(), controls=False).summary()
    assert (summary["categories"], summary["subcategories"]) == ({"logic": 1.0}, {})


def test_rows_of_another_form_are_refused(open_rows):
    features = {"question": Value("string"), "image": Image(), "solution": Value("string")}
    with pytest.raises(DataError) as caught:
        open_rows({"question": FOUR, "image": None, "solution": "B"}, features=features)
    message = str(caught.value)
    assert message.startswith("benchmarks.0: source: the rows of ")
    assert "have no answer, category; expected are question, image, answer, category, and there are" in message
    assert message.endswith("and there are question, image, image.bytes, image.path, solution")


def test_an_answer_that_is_a_number_is_refused(open_rows):
    with pytest.raises(DataError, match=r"are of another kind than expected: answer holds int64 instead of text$"):
        open_rows(row(1), features=FEATURES | {"answer": Value("int64")})


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
        ("B. The answer is B.", "B"),
        ("B. The answer is A dog.", "B"),  # an article
        ("B: dog. B", "B"),
        ("B. Option a is wrong", "B"),
        ("B. It is in the U.S.", "B"),
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
        "A. Answer: B",
        "A. a cat\nThe answer is B",
        "A. The correct answer is (B).",
        "A: no. B",
        "A. No! B.",
        "A, no. The best choice is **B**.",
        "A. B",
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


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("(B dog)", "B"),
        ("a dog (of Bob's)", "B"),
        ("It might be B", "B"),
        ("A, B", "B"),
        ("A or B", "A"),
        ("A dog", "A"),
        ("A: cat, B: dog, C: cow, D: hen", "D"),
        ("The answer is **C**.", "C"),
    ],
)
def test_the_looser_rule_takes_the_right_letter_as_a_word_anywhere(reply, letter):
    assert says_letter(reply, letter)


@pytest.mark.parametrize(
    "reply", ["", "BB", "B2", "2B", "Bob", "aB", "b", "(b)", "C", "dog", "A_B", "(a) Bob", "(a\nBob)"]
)
def test_a_part_of_a_word_is_no_letter_for_the_looser_rule_either(reply):
    assert not says_letter(reply, "B")


def measures(replies: list[str], controls: dict[str, float]) -> dict[str, float]:
    """The benchmark's own figures where B is right for every reply."""
    benchmark = MMStar(MMStar.Config.tiny(), "test")
    sample = benchmark[0]
    items = [
        Item(str(i), benchmark.prompt(sample), reply, "B", benchmark.score(reply, sample))
        for i, reply in enumerate(replies)
    ]
    return benchmark.measures(items, controls)


def test_the_same_replies_count_by_both_rules():
    figures = measures(["B", "It is B", "C", "dog"], {})
    interval = pytest.approx([0.150, 0.850], abs=1e-3)
    # strictly, one of the four is right
    assert figures == {"upstream_accuracy": 2 / 4, "upstream_ci95": interval, "answered": 2 / 4}


@pytest.mark.parametrize(
    ("controls", "gain", "leakage"),
    [
        ({}, None, None),
        ({"no_image": 0.2}, 0.3, None),
        ({"no_image": 0.2, "bare_decoder": 0.15}, 0.3, 0.05),
        ({"no_image": 0.2, "bare_decoder": 0.4}, 0.3, 0.0),  # never below 0
        ({"no_image": 0.9, "bare_decoder": 0.4}, -0.4, 0.5),
    ],
)
def test_gain_and_leakage_are_the_papers(controls, gain, leakage):
    figures = measures(["B", "C"], controls)
    assert figures.get("gain") == (gain if gain is None else pytest.approx(gain))
    assert figures.get("leakage") == (leakage if leakage is None else pytest.approx(leakage))


def test_the_bare_decoder_is_asked_before_training_and_without_pictures(tmp_path):
    overrides = ("benchmarks=[{name: mmstar, source: tiny, every: 2}]", "training.steps=4")
    summary = train(tiny_experiment(*overrides), tmp_path / "run")["benchmarks"]["mmstar"]
    questions = Questions("mmstar", MMStar(MMStar.Config.tiny(), "test"))
    expected = [
        tiny_model(*overrides).generate(questions.benchmark.prompt(sample), [], MMStar.max_new_tokens)
        for sample in questions.samples
    ]
    recorded = read_items(tmp_path / "run" / "evaluation" / "mmstar" / "bare-decoder.jsonl")
    assert [item.prediction for item in recorded] == expected
    assert set(summary["controls"]) == {"shuffled", "no_image", "bare_decoder"}
    assert {"gain", "leakage", "upstream_accuracy"} <= summary.keys()
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    early = next(line for line in lines if line.get("benchmark"))
    assert (early["step"], early["controls"]) == (2, {})  # on the way nothing but the questions themselves
    assert early.keys().isdisjoint({"gain", "leakage"})


def test_evaluating_a_run_gives_its_own_figures_and_its_model_elsewhere_all_but_the_leakage(tmp_path):
    overrides = ("benchmarks=[{name: mmstar, source: tiny}]", "training.steps=1")
    summary = train(tiny_experiment(*overrides), tmp_path / "run")["benchmarks"]["mmstar"]
    here = nanovlm("evaluate", tmp_path / "run", "--json")
    assert (json.loads(here.out), here.err) == ({"benchmark": "mmstar", **summary}, "")
    shutil.copytree(tmp_path / "run" / "model", tmp_path / "alone")
    alone = nanovlm("evaluate", tmp_path / "alone", "--benchmark", "mmstar", "source=tiny", "--json")
    assert summary.keys() - json.loads(alone.out).keys() == {"leakage"}
    assert alone.err == (
        "mmstar: what compares with the language decoder before it was trained is left out: "
        "the model's run, if it has one, did not ask it these questions\n"
    )
    assert nanovlm("evaluate", tmp_path / "alone", "--benchmark", "mmstar", "source=tiny", "--no-controls").err == ""


def test_the_table_has_a_line_for_every_category_and_subcategory(tmp_path):
    train(tiny_experiment("benchmarks=[{name: mmstar, source: tiny}]", "training.steps=1"), tmp_path / "run")
    lines = nanovlm("evaluate", tmp_path / "run").out.splitlines()
    assert re.fullmatch(r"mmstar: accuracy [\d.]+% \[[\d.]+%, [\d.]+%\] on 2 questions", lines[0])
    assert any(re.fullmatch(r"  upstream accuracy: [\d.]+% \[[\d.]+%, [\d.]+%\]", line) for line in lines)
    for name in ("answered", "gain", "leakage"):
        assert any(re.fullmatch(rf"  {name}: -?[\d.]+%", line) for line in lines)
    assert any("without pictures, the language decoder before it was trained: " in line for line in lines)
    table = [re.split(r"\s{2,}", line.strip())[:2] for line in lines[-3:]]
    assert table == [["category", "questions"], ["coarse perception", "2"], ["image style & quality", "2"]]
    assert len({len(line) for line in lines[-3:]}) == 1  # and they are aligned
