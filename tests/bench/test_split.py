import time

import pytest
import torch

from nanovlm.bench.split import PIECES, Laps, borders

SLEEP = 0.05
FREEZE = [
    (),
    ("training.learning_rate.vision_encoder=0",),
    ("training.learning_rate.language_decoder=0",),
    ("training.learning_rate.vision_encoder=0", "training.learning_rate.language_decoder=0"),
    ("training.learning_rate.projector=0", "training.learning_rate.vision_encoder=0"),
    ("language_decoder.tie_word_embeddings=false",),
    ("training.tokens_per_row=100",),
    ("training.gradient_checkpointing=true",),
    ("training.precision=bf16",),
]


def gradients(trainer, divided: bool) -> dict[str, torch.Tensor]:
    """Of one step's rows, before the optimizer uses them up."""
    step = next(trainer.steps)
    trainer.laps = Laps(trainer.device) if divided else None
    for row in step.rows:
        trainer.backward(row, sum(row.num_targets for row in step.rows))
    return {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("overrides", FREEZE, ids=" ".join)
def test_a_divided_step_gives_the_gradients_of_an_ordinary_one(trainer, overrides):
    ordinary, divided = (gradients(trainer(*overrides), divided) for divided in (False, True))
    assert ordinary.keys() == divided.keys() != set()
    for name, gradient in ordinary.items():
        torch.testing.assert_close(divided[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_what_is_frozen_has_no_backward_piece(trainer):
    subject = trainer("training.learning_rate.vision_encoder=0")
    with borders(subject.model, Laps(subject.device)) as cuts:
        subject.model(next(subject.steps).rows[0])
    assert set(cuts) == {"projector", "language_decoder"}


def test_steps_are_whole_again_afterwards(trainer):
    subject = trainer()
    subject.divided_step()
    assert subject.laps is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())


def slow(subject, piece: str, monkeypatch) -> None:
    """Make one piece of a step take ``SLEEP`` longer, in its forward pass or whatever it has."""
    owner, name = {
        "vision_encoder": (subject.model.vision_encoder, "forward"),
        "projector": (subject.model.projector, "forward"),
        "language_decoder": (subject.model.language_decoder, "forward"),
        "head": (subject.model.language_decoder, "logits"),
        "optimizer": (subject.optimizer, "step"),
        "data_wait": (subject, "count"),
    }[piece]
    original = getattr(owner, name)

    def slowly(*arguments):
        time.sleep(SLEEP)
        return original(*arguments)

    monkeypatch.setattr(owner, name, slowly)


def best_of_three(subject) -> dict[str, float]:
    """Seconds by piece; the first step is slow everywhere, and the machine may be busy with something else."""
    subject.divided_step()
    taken = [subject.divided_step() for _ in range(3)]
    return {piece: min(step[piece] for step in taken) for piece in PIECES}


@pytest.mark.parametrize("piece", PIECES)
def test_time_is_put_down_to_the_piece_that_takes_it(trainer, piece, monkeypatch):
    subject = trainer()
    before = best_of_three(subject)
    slow(subject, piece, monkeypatch)
    after = best_of_three(subject)
    grown = {name: after[name] - before[name] for name in PIECES}
    assert max(grown, key=lambda name: grown[name]) == piece
    assert grown[piece] > 0.7 * SLEEP


@pytest.mark.parametrize("role", ["vision_encoder", "projector", "language_decoder"])
def test_the_backward_pass_is_put_down_to_its_component(trainer, role):
    subject = trainer()
    before = best_of_three(subject)
    *_, parameter = getattr(subject.model, role).parameters()  # a decoder's first one is the head's, too
    parameter.register_hook(lambda gradient: time.sleep(SLEEP))  # called when its gradient is there
    after = best_of_three(subject)
    grown = {name: after[name] - before[name] for name in PIECES}
    assert grown[role] > 0.7 * SLEEP


def test_the_pieces_together_are_the_step(trainer):
    subject = trainer()
    subject.divided_step()
    start = time.perf_counter()
    pieces = subject.divided_step()
    elapsed = time.perf_counter() - start
    assert 0.9 * elapsed < sum(pieces.values()) <= elapsed
