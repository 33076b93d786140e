"""A benchmark asked by several ranks at once: what comes out is what one process gets."""

import pytest
import torch
from processes import Pool
from test_evaluator import Shades
from tiny import tiny_model

from nanovlm.evaluation import evaluator
from nanovlm.evaluation.evaluator import Evaluation, Item, Questions
from nanovlm.generation import generate
from nanovlm.training.distributed import Group

Asked = tuple[Evaluation, list[Item], list[list[int]]]


def asked(group: Group, size: int, batch: int) -> Asked:
    """An evaluation with its controls, the bare decoder's answers, and the lengths of the prompts of each batch."""
    batches = []

    def recorded(model, examples, max_new_tokens):
        batches.append([len(each.tokens.ids) + 1000 * len(each.pixels) for each in examples])
        return generate(model, examples, max_new_tokens)

    evaluator.generate, evaluator.BATCH = recorded, batch
    model = tiny_model("language_decoder.tie_word_embeddings=false", seed=2)
    questions = Questions("shades", Guesses(size))
    bare = questions.ask_bare_decoder(model, spread=group.map)
    evaluation = questions.evaluate(model, controls=True, seed=3, bare=bare, spread=group.map)
    return evaluation, bare, batches


class Guesses(Shades):
    """A graded score that any answer changes: a control that was dealt otherwise would show."""

    bare_decoder = True

    def prompt(self, sample):
        return "What shade is this? " * (1 + int(sample.id.partition("-")[2]) % 3)

    def score(self, prediction, sample):
        return sum(map(ord, prediction)) % 97 / 97


@pytest.fixture(scope="module", params=[2, 3])
def pool(request):
    with Pool(request.param) as pool:
        yield pool


@pytest.fixture
def alone(monkeypatch):
    for name in ("generate", "BATCH"):  # which `asked` replaces
        monkeypatch.setattr(evaluator, name, getattr(evaluator, name))
    return lambda *arguments: asked(Group(torch.device("cpu")), *arguments)


@pytest.mark.parametrize(("size", "batch"), [(8, 3), (8, 32), (17, 2), (1, 3)])
def test_the_result_does_not_depend_on_the_number_of_ranks(pool, alone, size, batch):
    evaluation, bare, batches = alone(size, batch)
    assert {"shuffled", "no_image", "bare_decoder"} == evaluation.controls.keys()
    results = pool(asked, size, batch)
    assert [result[:2] for result in results] == [(evaluation, bare)] * pool.world
    spread = [each for result in results for each in result[2]]
    assert sorted(spread) == sorted(batches)  # the same batches, each asked once
    most, least = (choose(len(result[2]) for result in results) for choose in (max, min))
    assert most - least <= 4  # of each of the four rounds at most one more
    assert least > 0 or len(batches) < 4 * pool.world


def test_these_answers_differ_with_the_pictures(alone):
    evaluation, bare, _ = alone(8, 3)
    assert len({item.prediction for item in evaluation.items}) > 1
    assert len({*evaluation.controls.values(), evaluation.summary()["accuracy"]}) > 1
    assert [item.skipped for item in bare] == [None] * 3 + ["no options"] + [None] * 4
