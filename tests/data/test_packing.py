import pytest
import torch
from tiny import random_pixels

from nanovlm.data.conversation import Tokens
from nanovlm.data.packing import IGNORED, Example, pack, pack_row

M = 3  # image tokens a picture


def sample(ids: str, image_at: list[int] | None = None) -> Example:
    """A token a letter, a = 1; capitals are learnt."""
    numbers = [ord(letter.lower()) - ord("a") + 1 for letter in ids]
    at = image_at or []
    return Example(Tokens(numbers, [letter.isupper() for letter in ids], at), random_pixels(len(at), 2))


def test_a_row_is_laid_out_end_to_end():
    row = pack_row([sample("abCD"), sample("aBcD", [0, 2])], M)
    assert row.token_ids.tolist() == [1, 2, 3, 4, 0, 0, 0, 1, 2, 0, 0, 0, 3, 4]
    no = IGNORED
    assert row.targets.tolist() == [no, 3, 4, no, no, no, no, 2, no, no, no, no, 4, no]
    assert row.image_slots.tolist() == [4, 5, 6, 9, 10, 11]
    assert row.target_slots.tolist() == [1, 2, 7, 12]
    assert row.segments.cu_seqlens.tolist() == [0, 4, 14]
    assert (row.num_tokens, row.num_targets, row.num_samples) == (14, 4, 2)


def test_the_first_word_behind_a_picture_is_learnt_from_its_last_token():
    row = pack_row([sample("aB", [1])], M)
    assert row.targets.tolist() == [IGNORED, IGNORED, IGNORED, 2, IGNORED]


def test_nothing_is_learnt_across_a_samples_border():
    row = pack_row([sample("a"), sample("A"), sample("Ab")], M)
    assert row.targets.tolist() == [IGNORED] * 4


def test_pictures_keep_their_order_over_samples():
    samples = [sample("aB", [0, 0]), sample("B"), sample("aB", [1])]
    row = pack_row(samples, M)
    assert row.pixels.equal(torch.cat([each.pixels for each in samples]))
    assert len(row.image_slots) == M * len(row.pixels)


@pytest.mark.parametrize(("tokens_per_row", "images_per_row"), [(12, 99), (13, 99), (99, 2), (20, 2), (5, 1)])
def test_rows_are_as_full_as_their_order_allows(tokens_per_row, images_per_row):
    samples = [sample("aB" * (i % 4 + 1), [0] * (i % 3 == 1)) for i in range(12)]
    sizes = [(len(each.tokens.ids) + M * len(each.pixels), len(each.pixels)) for each in samples]
    rows = pack(samples, M, tokens_per_row, images_per_row)
    taken = 0
    for row in rows:
        mine = sizes[taken : taken + row.num_samples]
        assert row.segments.cu_seqlens.diff().tolist() == [tokens for tokens, _ in mine]
        assert row.num_samples == 1 or (row.num_tokens <= tokens_per_row and len(row.pixels) <= images_per_row)
        taken += row.num_samples
        if taken < len(samples):  # the next sample would not have fitted
            tokens, images = sizes[taken]
            assert row.num_tokens + tokens > tokens_per_row or len(row.pixels) + images > images_per_row
    assert taken == len(samples)


def test_no_sample_makes_no_row():
    assert pack([], M, 10, 10) == []


def test_every_tensor_of_a_row_is_moved():
    row = pack_row([sample("aB", [0]), sample("bC")], M).to("meta")
    tensors = [*vars(row).values(), *vars(row.segments).values(), *row.segments.groups]
    moved = [value.is_meta for value in tensors if isinstance(value, torch.Tensor)]
    assert len(moved) == 5 + 4 + len(row.segments.groups)
    assert all(moved)
