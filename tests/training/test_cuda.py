"""What only a GPU can show; skipped without one. `pytest tests/training/test_cuda.py` runs it by itself."""

import pytest
import torch
from tiny import example, tiny_model, tiny_recipe

from nanovlm import Turn
from nanovlm.attention import Segments, attention
from nanovlm.data.packing import pack_row
from nanovlm.training.launch import choose_packing

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

# Heads of 16 and 32, which suit flash attention, in rows of three lengths.
ON_CUDA = (
    "device=cuda", "language_decoder.hidden_size=64", "language_decoder.num_hidden_layers=3", "training.steps=30",
    "training.tokens_per_row=256", "data.train.0.train_size=256",
)  # fmt: skip
THREE_LENGTHS = ("training.samples_per_step=6", "training.tokens_per_row=150")  # of rows, all in the first 20 steps
HALF = ("bf16", "fp16")


@pytest.fixture(autouse=True)
def _compiled_anew():
    """All tests compile the same functions, of which only so many graphs are kept; too many are an error here."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [[1], [40, 3, 1, 128, 7], [5, 0, 9, 0, 0]], ids=str)
def test_varlen_attention_and_its_gradient_equal_grouped_attention(lengths, dtype):
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(sum(lengths), heads, 64) for heads in (9, 3, 3)]
    qkv = [torch.randn(shape, generator=generator, device="cuda", dtype=dtype).requires_grad_() for shape in shapes]
    weights = torch.randn(shapes[0], generator=generator, device="cuda", dtype=dtype)
    found = []
    for longest in (0, 128):
        segments = Segments.of([n for n in lengths if n or longest], longest).map(lambda tensor: tensor.cuda())
        result = attention(*qkv, segments)
        found.append((result, *torch.autograd.grad((result * weights).sum(), qkv)))
    torch.testing.assert_close(found[1], found[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("compile", ["false", "true"])
def test_half_precision_learns_what_single_does(run, precision, compile):
    single = run(*ON_CUDA, "training.precision=fp32", "training.compile=false")
    half = run(*ON_CUDA, f"training.precision={precision}", f"training.compile={compile}")
    assert half.summary["precision"] == precision
    for step in (0, -1):
        assert half.metric("loss")[step] == pytest.approx(single.metric("loss")[step], rel=0.05)
    assert half.metric("loss")[-1] < half.metric("loss")[0] - 0.3


def test_a_filled_row_has_finite_gradients(trainer):
    """What the kernel leaves uninitialised would show here."""
    some = trainer(*ON_CUDA, "training.precision=bf16", "training.compile=false")
    metrics = [some.train_step() for _ in range(5)]
    assert all(torch.isfinite(step["grad_norm"]) for step in metrics)
    assert float(some.optimizer.lost) == 0


@pytest.mark.parametrize("precision", HALF)
def test_no_step_waits_for_the_device(trainer, precision):
    some = trainer(*ON_CUDA, *THREE_LENGTHS, f"training.precision={precision}")
    for _ in range(20):  # compiles
        some.train_step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            some.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_after_twenty_steps_nothing_is_compiled_any_more(trainer):
    some = trainer(*ON_CUDA, *THREE_LENGTHS, "training.precision=bf16", "training.compile=true")
    for _ in range(20):
        some.train_step()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert before > 0
    for _ in range(10):
        some.train_step()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


def test_rows_for_the_gpu_are_for_varlen_attention():
    model = tiny_model(*ON_CUDA).cuda()
    packing = choose_packing(tiny_recipe(*ON_CUDA), model)
    row = pack_row([example(model, [Turn("Hi?", "yes")], num_images=1)], model.num_image_tokens, packing.filling)
    assert row.segments.longest > 0
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.isfinite(model(row.to("cuda")))
