"""Few shapes of rows, so that compiled graphs are used again: each row is filled up to one of at most three lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PIECE = 128  # tokens: filling makes segments of its own, none longer than this (or than the longest sample)
LENGTHS = (0.25, 0.5, 1.0)  # of the longest row: a step's last row is seldom full
TOKEN_MULTIPLE = 64  # of a row's length, for the hardware's tiles
IMAGE_MULTIPLE = 8  # of the number of pictures: graphs of the encoder are for any number, but kernels like even ones


@dataclass(frozen=True)
class Filling:
    """What a row is filled up to. Filling has no target, and no sample sees it.

    lengths: the numbers of tokens that a row may have, ascending
    samples: the most samples in a row
    longest: the most tokens of a sample, rounded up
    varlen: whether the segments are for varlen attention: then there is always the same number of them, the last ones
        empty, and no groups. (What lies past the last segment the kernel would leave uninitialised.)
    """

    lengths: tuple[int, ...]
    samples: int
    longest: int
    varlen: bool

    @classmethod
    def of(cls, tokens_per_row: int, samples_per_step: int, longest_sample: int, varlen: bool) -> Filling:
        """For rows of at most so many tokens, in steps of so many samples, none of which has more than so many."""
        most = min(tokens_per_row, samples_per_step * longest_sample)
        lengths = sorted({round_up(round(most * share), TOKEN_MULTIPLE) for share in LENGTHS})
        longest = round_up(min(longest_sample, most), PIECE)
        return cls(tuple(lengths), min(samples_per_step, most), longest, varlen)

    def missing(self, tokens: int) -> int:
        """How many tokens of filling a row of so many needs."""
        return next(length for length in self.lengths if length >= tokens) - tokens

    def segments(self, lengths: Sequence[int], missing: int) -> list[int]:
        """The samples' lengths, those of the filling, and for varlen attention empty ones up to a fixed number."""
        pieces = [PIECE] * (missing // PIECE) + [missing % PIECE] * (missing % PIECE > 0)
        together = [*lengths, *pieces]
        fixed = self.samples + -(-self.lengths[-1] // PIECE) if self.varlen else 0
        return together + [0] * (fixed - len(together))

    @staticmethod
    def images(number: int) -> int:
        """How many pictures of filling so many need."""
        return round_up(number, IMAGE_MULTIPLE) - number


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
