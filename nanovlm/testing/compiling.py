"""Does it compile without graph breaks? Traced as for training, and run by torch itself: machine code takes minutes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nanovlm.errors import summary
from nanovlm.seeding import seeded
from nanovlm.testing.checks import Subject, Violation

ROUNDING = 1e-4


def require_compiled(subject: Subject, model: nn.Module, parts: Sequence[nn.Module], given: Sequence[Tensor]) -> None:
    """Violation unless each of a model's parts is one graph that computes the same, for all that the model is given."""
    import torch._dynamo  # takes a while

    expected = _outputs(model, given)
    torch._dynamo.reset()
    for part in parts:
        part.forward = torch.compile(part.forward, backend="eager", fullgraph=True)
    try:
        found = _outputs(model, given)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise Violation(
            f"does not compile as one graph: {_first_line(error)}; leave what depends on the numbers of a tensor, "
            "printing and the like out of `forward`"
        ) from None
    finally:
        torch._dynamo.reset()
    for one, other in zip(found, expected, strict=True):
        if not torch.allclose(one, other, rtol=ROUNDING, atol=ROUNDING):
            off = float((one - other).detach().abs().max())
            raise Violation(f"computes something else when it is compiled, off by {off:.1g}")


def _outputs(model: nn.Module, given: Sequence[Tensor]) -> list[Tensor]:
    """In training dropout draws: the same each time."""
    with seeded("compiled"):
        return [model(x) for x in given]


def _first_line(error: Exception) -> str:
    """What torch says first; the rest is about itself."""
    lines: list[Any] = str(error).strip().splitlines()
    return summary(type(error)(lines[0])) if lines else type(error).__name__
