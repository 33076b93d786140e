"""Randomness that stays where it belongs: one seed for each purpose, and the global generator left as it was."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(*parts: object) -> int:
    """A seed in [0, 2**63) for one purpose, independent of those for all others."""
    digest = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded for one purpose."""
    return torch.Generator().manual_seed(derived_seed(*parts))


@contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Within the block, torch's randomness is seeded for one purpose; after it, as if nothing had been drawn.

    A plain ``nn.Linear`` in a plugin so draws the same weights whatever else is built beside it.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derived_seed(*parts))  # of every device: dropout draws where the tensors are
        yield
