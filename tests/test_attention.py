import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from nanovlm.attention import (
    GROUP_MIN_LENGTH,
    GROUP_WASTE,
    Segments,
    attention,
    suits_flash,
    varlen_obstacle,
)
from nanovlm.kv_cache import KVCache
from nanovlm.rotary import rotary_table, rotate

HEADS = [(4, 4), (4, 2), (6, 1), (9, 3)]  # of queries, of keys and values


def random_lengths(seed: int) -> list[int]:
    """One to twelve samples: some of one token, most short, a few long."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    longest = (1, 4, 20, 70)
    return [draw(1, longest[draw(0, 3)]) for _ in range(draw(1, 12))]


LENGTHS = [[1], [1, 1, 1], [40], [3, 1, 64, 1, 63, 2], *map(random_lengths, range(20))]


def random_qkv(tokens: int, heads: int, kv_heads: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(tokens, heads, 8), (tokens, kv_heads, 8), (tokens, kv_heads, 8)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """The slow way: one T x T mask over all samples, and a softmax."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    sample = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    seen = (sample[:, None] == sample) & torch.ones(len(q), len(q), dtype=torch.bool).tril()
    scores = torch.einsum("thd,shd->hts", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("hts,shd->thd", scores.masked_fill(~seen, -torch.inf).softmax(dim=-1), v)


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_packed_attention_and_its_gradient_equal_a_block_mask(lengths, heads):
    qkv = random_qkv(sum(lengths), *heads)
    weights = torch.randn(sum(lengths), heads[0], 8, dtype=torch.float64)
    packed, plain = attention(*qkv, Segments.of(lengths)), plain_attention(*qkv, lengths)
    torch.testing.assert_close(packed, plain, rtol=1e-9, atol=1e-11)
    for mine, reference in zip(*(torch.autograd.grad((x * weights).sum(), qkv) for x in (packed, plain)), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_every_token_stands_in_exactly_one_place(lengths):
    segments = Segments.of(lengths)
    places = torch.cat([group.flatten() for group in segments.groups])
    assert places[segments.inverse].equal(torch.arange(sum(lengths)))
    assert len(segments.inverse.unique()) == sum(lengths)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_positions_restart_with_each_sample(lengths):
    segments = Segments.of(lengths)
    assert segments.positions.tolist() == [position for length in lengths for position in range(length)]
    assert segments.sample_ids.tolist() == [s for s, length in enumerate(lengths) for _ in range(length)]
    assert segments.cu_seqlens.tolist() == [sum(lengths[:s]) for s in range(len(lengths) + 1)]
    assert segments.last.tolist() == [sum(lengths[: s + 1]) - 1 for s in range(len(lengths))]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_a_group_is_padded_on_the_right_by_its_own_samples_and_not_by_much(lengths):
    segments = Segments.of(lengths)
    for group in segments.groups:
        for row in group:
            sample = int(segments.sample_ids[row[0]])
            assert segments.positions[row].tolist() == [min(i, lengths[sample] - 1) for i in range(len(row))]
            assert segments.sample_ids[row].unique().tolist() == [sample]
            enough = group.shape[1] * (1 - GROUP_WASTE)
            assert lengths[sample] >= enough or group.shape[1] <= GROUP_MIN_LENGTH


def test_no_mask_is_ever_made(monkeypatch):
    seen = []
    plain = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **options: seen.append(options) or plain(*args, **options),
    )
    attention(*random_qkv(60, 4, 2), Segments.of([30, 1, 29]))
    assert seen
    assert all(options["is_causal"] and options.get("attn_mask") is None for options in seen)


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_cached_attention_equals_attention_to_all_that_came_before(heads):
    prompts, more = [5, 1, 17, 2], 4
    ends = [length + more for length in prompts]
    q, k, v = random_qkv(sum(ends), *heads)
    whole = [sequence.split(ends) for sequence in (q, k, v)]  # for each of q, k, v: one tensor a sample
    reference = plain_attention(q, k, v, ends).split(ends)
    cache = KVCache(1, len(prompts), max(ends), heads[1], 8, like=k.detach())
    segments = Segments.of(prompts)
    for step in range(more + 1):
        taken = [slice(0, n) if step == 0 else slice(n + step - 1, n + step) for n in prompts]
        now = [torch.cat([part[s] for part, s in zip(parts, taken, strict=True)]) for parts in whole]
        expected = torch.cat([part[s] for part, s in zip(reference, taken, strict=True)])
        torch.testing.assert_close(cache.attention(0, *now, segments), expected, rtol=1e-9, atol=1e-11)
        cache.advance(segments)
        segments = cache.next()
    assert cache.lengths.tolist() == ends


@pytest.mark.parametrize("theta", [10_000.0, 100_000.0])
def test_rotary_positions_equal_transformers(theta):
    config = LlamaConfig(
        hidden_size=48, num_attention_heads=3, rope_parameters={"rope_theta": theta, "rope_type": "default"}
    )
    q, k, _ = random_qkv(40, 3, 3, torch.float32)
    positions = torch.cat([torch.arange(25), torch.arange(15)])
    q, k = torch.cat((q, q), dim=-1), torch.cat((k, k), dim=-1)  # (T, H, 16)
    tables = LlamaRotaryEmbedding(config)(q, positions[None])
    expected = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], *tables)
    cos, sin = (table[positions, None] for table in rotary_table(16, 64, theta))
    for mine, reference in zip((q, k), expected, strict=True):
        torch.testing.assert_close(rotate(mine, cos, sin), reference[0].transpose(0, 1), rtol=1e-5, atol=1e-5)


def plain_varlen(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):
    """What flash attention's kernel does, which no CPU has: as its documentation says it."""
    assert (cu_seq_q is cu_seq_k, max_q == max_k, tuple(window_size)) == (True, True, (-1, 0))
    assert enable_gqa == (q.shape[1] != k.shape[1])
    assert cu_seq_q.dtype == torch.int32
    lengths = cu_seq_q.diff().tolist()
    assert max(lengths) <= max_q
    assert sum(lengths) == len(q)  # what lies past the last segment the kernel leaves uninitialised
    return plain_attention(q, k, v, lengths)


@pytest.mark.parametrize("native", [True, False], ids=["grouped", "repeated"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("lengths", [*LENGTHS[:6], [3, 0, 2, 0, 0]], ids=str)
def test_varlen_attention_gets_what_its_kernel_needs(monkeypatch, lengths, heads, native):
    monkeypatch.setattr("nanovlm.varlen.varlen_attn", plain_varlen)
    monkeypatch.setattr("nanovlm.varlen.NATIVE_GROUPS", native)
    qkv, segments = random_qkv(sum(lengths), *heads), Segments.of(lengths, longest=128)
    assert not segments.groups
    torch.testing.assert_close(attention(*qkv, segments), plain_attention(*qkv, lengths), rtol=1e-9, atol=1e-11)


def test_torch_takes_our_call_of_its_kernel():
    """Traced on a GPU that is not there: the names of the options, and the shapes."""
    segments = Segments.of([30, 10, 0], longest=128)
    with FakeTensorMode(allow_non_fake_inputs=True):
        segments = segments.map(lambda tensor: torch.empty_like(tensor, device="cuda"))
        q, k, v = (torch.empty(40, heads, 64, device="cuda", dtype=torch.bfloat16) for heads in (9, 3, 3))
        q.requires_grad_()
        attended = attention(q, k, v, segments)
        assert (attended.shape, attended.dtype, attended.device.type) == (q.shape, q.dtype, "cuda")
        assert attended.requires_grad


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "said"),
    [
        ("cpu", torch.bfloat16, (9, 0), "cpu has no kernel for it"),
        ("mps", torch.float16, (9, 0), "mps has no kernel for it"),
        ("cuda", torch.float32, (9, 0), "it needs half precision"),
        ("cuda", torch.float16, (7, 5), "it needs compute capability 8.0, and this GPU has 7.5"),
        ("cuda", torch.bfloat16, (8, 0), ""),
        ("cuda", torch.float16, (9, 0), ""),
    ],
)
def test_what_stands_in_the_way_of_varlen_attention(monkeypatch, device, dtype, capability, said):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert varlen_obstacle(torch.device(device), dtype) == said


@pytest.mark.parametrize(("width", "suits"), [(64, True), (8, True), (256, True), (264, False), (12, False)])
def test_heads_that_suit_flash_attention(width, suits):
    assert suits_flash(width) == suits
