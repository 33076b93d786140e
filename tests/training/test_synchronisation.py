"""A step never waits for the device: no number of it is read before the next one is under way."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nanovlm.training.trackers import Late

# What needs a number of the device, or a shape that depends on its numbers.
WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique", "bincount")


class Watching(TorchDispatchMode):
    """Collects the operations that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        self.operations += 1
        by_truth = name in ("index", "index_put") and any(t is not None and t.dtype == torch.bool for t in args[1])
        by_count = func is torch.ops.aten.repeat_interleave.Tensor and not (kwargs or {}).get("output_size")
        if name.startswith(WAITING) or by_truth or by_count:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def no_kernel(q, k, v, *args, **options):
    """In the place of varlen attention's kernel, which no CPU has: anything that depends on all three."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return q + k * v


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("training.max_grad_norm=0",),
        ("training.precision=bf16",),
        ("training.tokens_per_row=84",),
        ("training.learning_rate.vision_encoder=0",),
        ("training.gradient_checkpointing=true",),
    ],
    ids=str,
)
@pytest.mark.parametrize("varlen", [False, True], ids=["grouped", "varlen"])
def test_no_operation_of_a_step_waits_for_the_device(trainer, monkeypatch, overrides, varlen):
    if varlen:
        monkeypatch.setattr("nanovlm.training.launch.varlen_obstacle", lambda *_: "")
        monkeypatch.setattr("nanovlm.varlen.varlen_attn", no_kernel)
    some = trainer("language_decoder.hidden_size=32", *overrides)
    some.steps = iter(list(some.steps))  # what prepares them works on the host
    assert bool(next(iter(some.steps)).rows[0].segments.longest) == varlen
    with Watching() as watching:
        some.train_step()
        some.train_step()
    assert watching.operations > 100
    assert watching.found == []


@pytest.mark.parametrize(
    "read", [lambda x: float(x[0]), lambda x: x[x > 0], lambda x: bool(x.any()), lambda x: x.nonzero()]
)
def test_the_watch_sees_what_waits(read):
    with Watching() as watching:
        read(torch.ones(3))
    assert watching.found


def test_metrics_are_read_in_one_piece():
    metrics = {"loss": torch.tensor(0.5), "step": 3, "norm": torch.tensor(2.0, dtype=torch.float64)}
    assert Late(metrics).read() == {"loss": 0.5, "step": 3, "norm": 2.0}
    assert Late({"step": 3}).read() == {"step": 3}
    with Watching() as watching:
        late = Late(metrics)
    assert watching.found == []
    metrics["loss"].fill_(7)  # later work on the device changes nothing
    assert late.read()["loss"] == 0.5
