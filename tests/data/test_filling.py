import pytest
import torch
from tiny import example, tiny_model

from nanovlm import Turn
from nanovlm.data.filling import IMAGE_MULTIPLE, LENGTHS, PIECE, Filling
from nanovlm.data.packing import pack, pack_row

QUESTIONS = [Turn("What?", "x" * n) for n in (1, 9, 40, 3)]


@pytest.fixture(scope="module")
def model():
    return tiny_model("language_decoder.hidden_size=32")  # heads of 8, which suit flash attention


@pytest.fixture(scope="module")
def examples(model):
    return [example(model, [turn], num_images=i % 3, seed=i) for i, turn in enumerate(QUESTIONS)]


def filling(varlen: bool = False) -> Filling:
    return Filling.of(tokens_per_row=512, samples_per_step=8, longest_sample=100, varlen=varlen)


def test_rows_have_at_most_three_lengths():
    some = filling()
    assert len(some.lengths) == len(LENGTHS)
    assert list(some.lengths) == sorted(some.lengths)
    for tokens in range(1, 513):
        length = tokens + some.missing(tokens)
        assert length in some.lengths
        assert not any(tokens <= shorter < length for shorter in some.lengths)


def test_no_row_is_longer_than_a_step_can_be():
    """The quickstart's steps are far shorter than a row may be."""
    assert Filling.of(8192, samples_per_step=4, longest_sample=100, varlen=False).lengths[-1] == 448  # 400, rounded up


def test_a_filled_row_has_the_same_losses_and_gradients(model, examples):
    found = []
    for some in (None, filling()):
        model.zero_grad()
        row = pack_row(examples, model.num_image_tokens, some)
        losses = model.losses(row)
        losses.sum().backward()
        found.append((losses.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_filling_is_not_counted(model, examples):
    plain, filled = (pack_row(examples, model.num_image_tokens, some) for some in (None, filling(varlen=True)))
    for size in ("num_samples", "num_tokens", "num_images", "num_targets"):
        assert getattr(filled, size) == getattr(plain, size)
    assert filled.num_pairs == plain.num_pairs == sum(length**2 for length in plain.segments.cu_seqlens.diff().tolist())
    assert len(filled.token_ids) in filling().lengths
    assert len(filled.pixels) == IMAGE_MULTIPLE > len(plain.pixels) == filled.num_images
    assert len(filled.image_slots) == model.num_image_tokens * filled.num_images


def test_filling_makes_segments_of_its_own(model, examples):
    """All of the row belongs to a segment, and no piece is longer than the kernel is told."""
    plain, filled = (pack_row(examples, model.num_image_tokens, some) for some in (None, filling(varlen=True)))
    lengths = filled.segments.cu_seqlens.diff().tolist()
    assert lengths[: plain.num_samples] == plain.segments.cu_seqlens.diff().tolist()
    assert sum(lengths) == len(filled.token_ids)
    assert max(lengths) <= PIECE == filled.segments.longest


def test_for_varlen_attention_rows_of_any_content_have_equally_many_segments(model, examples):
    rows = [pack_row(examples[:n], model.num_image_tokens, filling(varlen=True)) for n in range(1, 5)]
    assert len({len(row.segments.cu_seqlens) for row in rows}) == 1
    assert all(row.segments.groups == () for row in rows)


def test_the_fullest_row_has_room_for_its_segments():
    some = Filling.of(tokens_per_row=512, samples_per_step=64, longest_sample=8, varlen=True)
    segments = some.segments([8] * 64, some.missing(512))
    assert len(segments) == len(some.segments([8], some.missing(8)))


def test_a_row_without_a_picture_gets_none(model):
    row = pack_row([example(model, [QUESTIONS[0]])], model.num_image_tokens, filling())
    assert len(row.pixels) == row.num_images == 0


def test_every_row_of_a_step_is_filled(model, examples):
    rows = pack(examples * 4, model.num_image_tokens, 200, 100, Filling.of(200, 16, 100, varlen=False))
    assert len(rows) > 1
    assert {len(row.token_ids) for row in rows} <= {64, 128, 256}  # of 200: a quarter, a half and all, rounded up
