"""What every language decoder must do: its shapes, what a token may depend on, the cache, and its blocks.

Where these compare numbers, no weights are all alike: a branch that begins at zero could hide a leak.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nanovlm.attention import Segments
from nanovlm.borrowed_decoder import distance
from nanovlm.testing.blocks import require_blocks
from nanovlm.testing.checks import Subject, Violation, check, doing
from nanovlm.testing.models import LENGTHS, require_gradients, stirred_tiny, tiny

PATTERNS = (LENGTHS, (1, 1, 1), (9, 9, 9), (2, 33, 1, 32))  # lengths of a row's samples
CACHED = (LENGTHS, (1, 1, 1), (5,))
STEPS = 4  # tokens that are read one by one
ROOM = 64  # tokens that a tiny decoder must take, for checks and tiny trainings
MOST = 2048  # of a longer max_positions no more is tried
ROUNDING = 1e-5  # of a token's logits, relative to their norm; a leak gives 1e-4 and more


def random_ids(subject: Subject, count: int, seed: int = 0) -> Tensor:
    """(count,) int64; the vocabulary's last token is the first of them."""
    config: Any = subject.config
    size = getattr(config, "vocab_size", None)
    if not isinstance(size, int) or size < 1:
        raise Violation(f"has Config.vocab_size={size!r}: give the number of token embeddings, V, there")
    ids = torch.randint(size, (count,), generator=torch.Generator().manual_seed(seed))
    ids[0] = size - 1
    return ids


def logits_of(decoder: Any, ids: Tensor, lengths: Sequence[int]) -> Tensor:
    """(T, V) of samples laid end to end."""
    return decoder.logits(decoder(decoder.embed(ids), Segments.of(lengths)))


@check("language_decoder")
@torch.no_grad()
def shapes_as_promised(subject: Subject) -> None:
    """gives hidden states as wide as `dim` says, and for any of them a logit for each of `vocab_size` tokens."""
    decoder, total = tiny(subject), sum(LENGTHS)
    ids = random_ids(subject, total)
    config: Any = subject.config
    dim, size = getattr(decoder, "dim", None), config.vocab_size
    if not isinstance(dim, int):
        raise Violation(f"has dim={dim!r}: set self.dim in __init__, the width of a token's embedding")

    def require(found: Tensor, what: str, expected: tuple[int, ...]) -> Tensor:
        if tuple(found.shape) != expected:
            raise Violation(
                f"gives {tuple(found.shape)} from {what}; with T={total}, dim={dim} and vocab_size={size} that should "
                f"be {expected}"
            )
        if found.dtype != torch.float32:
            raise Violation(f"gives {found.dtype} from {what} outside of autocast, where float32 is expected")
        return found

    x = require(decoder.embed(ids), "embed(ids), ids (T,)", (total, dim))
    hidden = require(decoder(x, Segments.of(LENGTHS)), "forward(x, segments), x (T, D)", (total, dim))
    require(decoder.logits(hidden), "logits(hidden), hidden (T, D)", (total, size))
    require(decoder.logits(hidden[:6].view(2, 3, dim)), "logits(hidden), hidden (2, 3, D)", (2, 3, size))
    require(decoder.logits(hidden[:0]), "logits(hidden), hidden (0, D)", (0, size))


@check("language_decoder")
@torch.no_grad()
def reads_up_to_max_positions(subject: Subject) -> None:
    """reads samples of as many tokens as `max_positions` says, at once and with a cache."""
    decoder = tiny(subject).eval()
    most = getattr(decoder, "max_positions", None)
    if not isinstance(most, int) or most < 1:
        raise Violation(f"has max_positions={most!r}: set it in __init__, the longest sample in tokens")
    if most < ROOM:
        raise Violation(
            f"takes {most} tokens from Config.tiny(), which is to take {ROOM}, for checks and tiny trainings"
        )
    length = min(most, MOST)
    ids = random_ids(subject, length)
    with doing(f"on a sample of {length} tokens, where max_positions={most}", subject):
        whole = decoder(decoder.embed(ids), Segments.of([length]))
        cache = decoder.new_cache(1, length)
        decoder(decoder.embed(ids[:-1]), Segments.of([length - 1]), cache)
        last = decoder(decoder.embed(ids[-1:]), cache.next(), cache)
    if not (whole.isfinite().all() and last.isfinite().all()):
        raise Violation(f"gives no finite numbers for a sample of {length} tokens, where max_positions={most}")


@check("language_decoder")
@torch.no_grad()
def packed_equals_separate(subject: Subject) -> None:
    """gives each sample of a packed row what it gives that sample alone."""
    with stirred_tiny(subject) as decoder:
        for lengths in PATTERNS:
            ids = random_ids(subject, sum(lengths))
            packed = logits_of(decoder, ids, lengths).split(lengths)
            for number, (found, own) in enumerate(zip(packed, ids.split(lengths), strict=True), start=1):
                off = distance(found, logits_of(decoder, own, [len(own)]))
                if off > ROUNDING:
                    raise Violation(
                        f"gives sample {number} of a row of {lengths} tokens other logits than alone, off by "
                        f"{off:.1e} of their norm: attention must stay within a sample (nanovlm.attention does), and "
                        "positions begin anew with each (segments.positions)"
                    )


@check("language_decoder")
def looks_back_only(subject: Subject) -> None:
    """lets a token depend on itself and on what came before it in its own sample, and on nothing else."""
    before = sum(LENGTHS[:2])
    place = before + 7  # the eighth token of the third sample
    with stirred_tiny(subject) as decoder:
        x = decoder.embed(random_ids(subject, sum(LENGTHS))).detach().requires_grad_()
        hidden = decoder(x, Segments.of(LENGTHS))
        (hidden[place] * torch.randn(hidden.shape[1])).sum().backward()
    seen = x.grad.any(dim=-1).nonzero().flatten().tolist() if x.grad is not None else []
    own = range(before, before + LENGTHS[2])
    if foreign := [token for token in seen if token not in own]:
        raise Violation(
            f"lets a token depend on {len(foreign)} tokens of other samples of the row: attend within a sample only, "
            "as nanovlm.attention does"
        )
    if later := [token for token in seen if token > place]:
        raise Violation(f"lets a token depend on {len(later)} tokens that come after it: attention is to be causal")
    for what, token in (("itself", place), ("the token before it", place - 1)):
        if token not in seen:
            raise Violation(f"gives a token hidden states that do not depend on {what}: is attention left out?")


@check("language_decoder")
@torch.no_grad()
def works_from_embeddings_alone(subject: Subject) -> None:
    """works from the embeddings that it is given, whatever they are, and leaves them as they are."""
    with stirred_tiny(subject) as decoder:
        segments = Segments.of(LENGTHS)
        x = decoder.embed(random_ids(subject, sum(LENGTHS))) + 0.0  # its own rows may be what embed gives
        before = x.clone()
        hidden = decoder(x, segments)
        if not x.equal(before):
            raise Violation("changes the embeddings that it is given: write `x = x + ...`, not `x += ...`")
        decoder.embed(random_ids(subject, sum(LENGTHS), seed=1))
        if (off := distance(decoder(before, segments), hidden)) > ROUNDING:
            raise Violation(
                f"gives other hidden states for the same embeddings after `embed` was called for others, off by "
                f"{off:.1e}: image tokens come from a projector and have no ids, so nothing may be kept of these"
            )


@check("language_decoder")
@torch.no_grad()
def cached_equals_plain(subject: Subject) -> None:
    """gives with a cache, token by token, what it gives for the whole text at once."""
    with stirred_tiny(subject) as decoder:
        for lengths in CACHED:
            texts = [random_ids(subject, length + STEPS, seed) for seed, length in enumerate(lengths)]
            for text, each in zip(texts, _read(decoder, texts, lengths), strict=True):
                off = distance(each, logits_of(decoder, text, [len(text)]))
                if off > ROUNDING:
                    raise Violation(
                        f"gives with a cache other logits than without, off by {off:.1e} of their norm (prompts of "
                        f"{lengths} tokens, and {STEPS} more for each): keys and values of every sample are kept at "
                        "its own positions, as nanovlm.kv_cache does"
                    )


def _read(decoder: Any, texts: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
    """Each text's logits (its length, V), its first tokens read at once with all others', the rest one by one."""
    cache = decoder.new_cache(len(texts), max(map(len, texts)))
    prompts = torch.cat([text[:length] for text, length in zip(texts, lengths, strict=True)])
    hidden = decoder(decoder.embed(prompts), Segments.of(lengths), cache)
    read = list(hidden.split(list(lengths)))
    for step in range(STEPS):
        ids = torch.stack([text[length + step] for text, length in zip(texts, lengths, strict=True)])
        hidden = decoder(decoder.embed(ids), cache.next(), cache)  # (S, D)
        read = [torch.cat((each, one[None])) for each, one in zip(read, hidden, strict=True)]
    return [decoder.logits(each) for each in read]


@check("language_decoder")
@torch.no_grad()
def keeps_caches_apart(subject: Subject) -> None:
    """keeps what it has read in the cache that it is given, and nowhere else."""
    with stirred_tiny(subject) as decoder:
        texts = [random_ids(subject, 6, seed) for seed in (0, 1)]
        expected = [decoder(decoder.embed(text), Segments.of([6])) for text in texts]
        caches = [decoder.new_cache(1, 6) for _ in texts]
        both = list(zip(texts, caches, strict=True))
        with doing("when two caches are filled in turns", subject):
            for text, cache in both:
                decoder(decoder.embed(text[:5]), Segments.of([5]), cache)
            last = [decoder(decoder.embed(text[5:]), cache.next(), cache) for text, cache in both]
        if max(distance(one[0], whole[5]) for one, whole in zip(last, expected, strict=True)) > ROUNDING:
            raise Violation("mixes two caches that are filled in turns: keep all that was read in what new_cache gives")
        if distance(decoder(decoder.embed(texts[0]), Segments.of([6])), expected[0]) > ROUNDING:
            raise Violation("gives other hidden states without a cache once it was used with one: keep nothing of it")


@check("language_decoder")
def every_parameter_learns(subject: Subject) -> None:
    """gives every parameter a finite gradient."""
    decoder = tiny(subject)
    require_gradients(decoder, logits_of(decoder, random_ids(subject, sum(LENGTHS)), LENGTHS))


@check("language_decoder")
@torch.no_grad()
def blocks_are_its_parts(subject: Subject) -> None:
    """lists in `blocks` parts of its own, with weights, and calls them: each is compiled and checkpointed alone."""
    decoder = tiny(subject)
    require_blocks(decoder, lambda: logits_of(decoder, random_ids(subject, sum(LENGTHS)), LENGTHS))
