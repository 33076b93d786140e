import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny import tiny_model

from nanovlm import Benchmark, DataError, Sample, SkipSample, Turn
from nanovlm.evaluation import evaluator
from nanovlm.evaluation.evaluator import Evaluation, Item, Questions, read_items
from nanovlm.evaluation.gallery import draw_gallery
from nanovlm.generation import generate


class Shades(Benchmark):
    """What shade? Number 3 is broken, and so is the picture of number 5."""

    max_new_tokens = 4

    def __init__(self, size: int = 8, broken: bool = True) -> None:
        self.size, self.broken = size, broken

    def __len__(self) -> int:
        return self.size

    def id(self, index: int) -> str:
        return f"shade-{index}"

    def __getitem__(self, index: int) -> Sample:
        if self.broken and index == 3:
            raise SkipSample("no options")
        picture = b"broken" if self.broken and index == 5 else Image.new("L", (4, 4), 30 * index)
        return Sample([picture], [Turn("Shade?", f"{index}")], self.id(index), category=("even", "odd")[index % 2])


@pytest.fixture
def said(monkeypatch):
    """A model that names the shade it sees; every batch of prompts that it was asked is recorded."""
    batches = []

    def answer(model, examples, max_new_tokens):
        batches.append(examples)
        return [str(int(each.pixels.float().mean()) // 30) if len(each.pixels) else "dark" for each in examples]

    monkeypatch.setattr(evaluator, "generate", answer)
    return batches


def test_items_are_scored_and_broken_ones_are_wrong(said):
    items = Questions("shades", Shades()).evaluate(tiny_model(), controls=False).items
    assert [item.id for item in items] == [f"shade-{i}" for i in range(8)]
    assert [item.score for item in items] == [1, 1, 1, 0, 1, 0, 1, 1]
    assert [item.skipped for item in items] == [None, None, None, "no options", None, "undecodable picture", None, None]
    assert items[2] == Item("shade-2", "Shade?", "2", "2", 1.0, "even")


def test_the_summary_counts_everything(said):
    summary = Questions("shades", Shades()).evaluate(tiny_model(), controls=True).summary()
    assert summary["accuracy"] == 6 / 8
    assert summary["questions"] == 8
    assert summary["skipped"] == {"no options": 1, "undecodable picture": 1}
    assert summary["categories"] == {"even": 1.0, "odd": pytest.approx(2 / 3)}
    low, high = summary["ci95"]
    assert 0.3 < low < 0.75 < high < 0.95


def test_the_controls_take_the_pictures_away(said):
    summary = Questions("shades", Shades(broken=False)).evaluate(tiny_model(), controls=True).summary()
    assert summary["accuracy"] == 1
    assert summary["controls"] == {"shuffled": 0.0, "no_image": 0.0}  # everybody sees somebody else's shade, or none


def test_controls_are_asked_when_wanted_and_where_there_are_pictures(said):
    questions = Questions("shades", Shades())
    assert questions.evaluate(tiny_model(), controls=False).controls == {}
    questions.samples = [Sample([], [Turn("Two?", "2")], "x")]
    assert questions.evaluate(tiny_model(), controls=True).controls == {}


def test_the_bare_decoder_is_asked_without_pictures_where_a_benchmark_wants_it(said):
    questions = Questions("shades", Shades(broken=False))
    assert questions.ask_bare_decoder(tiny_model()) == []
    questions.benchmark.bare_decoder = True
    assert [item.prediction for item in questions.ask_bare_decoder(tiny_model())] == ["dark"] * 8
    questions.samples = [Sample([], [Turn("Two?", "2")], "x")]
    assert questions.ask_bare_decoder(tiny_model()) == []


@pytest.mark.parametrize(
    ("change", "compared"),
    [
        (lambda items: items, True),
        (lambda items: items[::-1], True),
        (lambda items: [*items, replace(items[0], id="another")], True),
        (lambda items: items[1:], False),
        (lambda items: [replace(items[0], question="Other?"), *items[1:]], False),
        (lambda items: [replace(items[0], answer="7"), *items[1:]], False),
        (lambda items: [], False),
    ],
)
def test_only_the_same_questions_are_compared(said, change, compared):
    questions = Questions("shades", Shades(broken=False))
    questions.benchmark.bare_decoder = True
    bare = [replace(item, score=1.0) for item in questions.ask_bare_decoder(tiny_model())]
    controls = questions.evaluate(tiny_model(), True, bare=change(bare)).controls
    assert controls.get("bare_decoder") == (1.0 if compared else None)
    assert questions.evaluate(tiny_model(), False, bare=bare).controls == {}


def test_a_benchmark_adds_figures_of_its_own(said, monkeypatch):
    monkeypatch.setattr(Shades, "measures", lambda self, items, controls: {"asked": len(items), "other": len(controls)})
    questions = Questions("shades", Shades())
    assert questions.evaluate(tiny_model(), controls=False).summary().items() >= {"asked": 8, "other": 0}.items()
    assert questions.evaluate(tiny_model(), controls=True).summary()["other"] == 2


def test_what_is_known_of_a_broken_sample_is_kept(said, monkeypatch):
    known = Sample([], [Turn("Shade?", "3")], "shade-3", category="odd", subcategory="prime")

    def broken(self, index):
        raise SkipSample("too dark", known)

    monkeypatch.setattr(Shades, "__getitem__", broken)
    (item,) = Questions("shades", Shades(size=1)).evaluate(tiny_model(), controls=False).items
    assert item == Item("shade-3", "Shade?", "", "3", 0.0, "odd", "prime", "too dark")


def test_what_was_asked_is_handed_on_with_its_samples(said):
    questions = Questions("shades", Shades())
    items = questions.evaluate(tiny_model(), controls=False).items
    answered = questions.answered(items)
    assert [sample.id for sample, _ in answered] == [f"shade-{i}" for i in (0, 1, 2, 4, 6, 7)]  # 3 and 5 are broken
    assert all(sample.id == item.id for sample, item in answered)


def test_a_limit_takes_the_first_questions(said):
    assert [item.id for item in Questions("shades", Shades(), 2).evaluate(tiny_model(), False).items] == [
        "shade-0", "shade-1",
    ]  # fmt: skip


def test_questions_are_asked_in_batches_in_their_order(said, monkeypatch):
    monkeypatch.setattr(evaluator, "BATCH", 3)
    items = Questions("shades", Shades()).evaluate(tiny_model(), controls=False).items
    assert [len(batch) for batch in said] == [3, 1, 2]
    assert [item.answer for item in items] == ["0", "1", "2", "", "4", "5", "6", "7"]


def test_predictions_are_what_the_model_says_alone():
    model = tiny_model("language_decoder.tie_word_embeddings=false", seed=2)
    questions = Questions("shades", Shades(broken=False))
    items = questions.evaluate(model, controls=False).items
    alone = [model.generate("Shade?", sample.images, max_new_tokens=4) for sample in questions.samples]
    assert [item.prediction for item in items] == alone
    assert any(alone)


def test_evaluating_changes_nothing():
    model = tiny_model().train()
    state, rng = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    Questions("shades", Shades()).evaluate(model, controls=True)
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
    assert torch.get_rng_state().equal(rng)
    assert model.training


def test_no_padding_reaches_the_answer():
    """The answer to a question does not depend on what is asked in the same batch."""
    model = tiny_model("language_decoder.tie_word_embeddings=false", seed=2)
    prompts = [evaluator.Prompt("x" * n).example(model.text, model.vision_encoder.image) for n in (1, 30, 7)]
    assert generate(model, prompts, 6) == [generate(model, [prompt], 6)[0] for prompt in prompts]


def test_items_are_written_one_a_line(tmp_path):
    items = [Item("a", "Was?", "grün\n", "grün", 1.0), Item("b", "", "", "", 0.0, skipped="gone")]
    file = tmp_path / "shades" / "10.jsonl"
    Evaluation("shades", items).write(file)
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [Item(**line) for line in lines] == items == read_items(file)
    assert read_items(tmp_path / "nowhere.jsonl") == []
    assert set(lines[0]) >= {"id", "question", "prediction", "answer", "score"}
    assert [path.name for path in file.parent.iterdir()] == ["10.jsonl"]


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x1e", "\n", "\r"])
def test_a_text_may_hold_whatever_ends_a_line_elsewhere(mark, tmp_path):
    items = [Item("a", f"b{mark}", f"c{mark}d", "e", 1.0), Item("f", "g", "h", "i", 0.0)]
    Evaluation("x", items).write(tmp_path / "3.jsonl")
    assert read_items(tmp_path / "3.jsonl") == items


def test_the_gallery_is_drawn_of_what_can_be_seen(said, tmp_path):
    questions = Questions("shades", Shades(30))
    items = questions.evaluate(tiny_model(), controls=False).items
    draw_gallery(questions.samples, items, tmp_path / "some" / "0.png")
    picture = Image.open(tmp_path / "some" / "0.png")
    assert picture.width > picture.height > 600
    assert len(picture.getcolors(100_000)) > 20


def test_a_question_too_long_for_the_decoder_is_skipped_and_the_others_are_asked(said, monkeypatch):
    questions = Questions("shades", Shades(broken=False))
    monkeypatch.setattr(Shades, "prompt", lambda self, sample: "long " * (60 if sample.id == "shade-2" else 1))
    summary = questions.evaluate(tiny_model(), controls=False).summary()
    assert (summary["skipped"], summary["accuracy"]) == ({"too long": 1}, 7 / 8)


def test_a_damaged_file_of_answers_is_named(tmp_path):
    (tmp_path / "bare-decoder.jsonl").write_text('{"id": "a"')
    with pytest.raises(DataError, match=r"bare-decoder\.jsonl is damaged: remove it, and go on without"):
        read_items(tmp_path / "bare-decoder.jsonl")
