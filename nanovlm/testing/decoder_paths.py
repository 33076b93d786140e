"""The ways in which a language decoder is run and used: compiled, by flash attention, on a GPU, with LoRA, on text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nanovlm import attention as core_attention
from nanovlm.adapters import Lora, adapters, add_lora, merge_lora
from nanovlm.attention import Segments, suits_flash, varlen_obstacle
from nanovlm.borrowed_decoder import distance
from nanovlm.components import TextConfig, parse
from nanovlm.data.conversation import TextFormat, load_text_format
from nanovlm.data.dataset import Turn
from nanovlm.errors import ConfigError, NanoVLMError
from nanovlm.testing.checks import NotHere, Subject, Violation, check, doing
from nanovlm.testing.compiling import require_compiled
from nanovlm.testing.language_decoders import ROUNDING, logits_of, random_ids
from nanovlm.testing.models import LENGTHS, require_gradients, stirred_tiny, tiny, tiny_on_meta
from nanovlm.training.precision import Precision

OTHER_LENGTHS = (4, 11)
HALF = 0.1  # how far logits in half precision may be from those in fp32, relative to their norm
QUESTION, ANSWER = "What is this?", "A cat."


class OnRows(nn.Module):
    """A decoder as a function of embeddings (T, D), in samples of lengths that are known for their sum."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        lengths = next(lengths for lengths in (LENGTHS, OTHER_LENGTHS) if sum(lengths) == len(x))
        return self.decoder(x, Segments.of(lengths))


@check("language_decoder")
def blocks_compile(subject: Subject) -> None:
    """has blocks that compile without graph breaks, but for the one at attention that the core makes itself."""
    decoder = tiny(subject).eval()
    given = [decoder.embed(random_ids(subject, sum(lengths))).detach() for lengths in (LENGTHS, OTHER_LENGTHS)]
    # Training keeps this function out of the graphs, and breaks them there. Here it must not count: another one
    # stands in its place, that can be compiled, whatever was trained in this process before.
    with mock.patch.object(core_attention, "grouped_attention", _each_by_itself):
        require_compiled(subject, OnRows(decoder), list(decoder.blocks), given)


def _each_by_itself(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """Of the right shape (T, H, d), and no attention at all."""
    groups = q.shape[1] // k.shape[1]
    return q + k.repeat_interleave(groups, dim=1) + v.repeat_interleave(groups, dim=1)


@check("language_decoder")
@torch.no_grad()
def varlen_is_true(subject: Subject) -> None:
    """attends by `nanovlm.attention` alone, and with heads that suit flash attention, where it sets `varlen`."""
    if find_spec("torch.nn.attention.varlen") is None:
        raise NotHere(f"torch {torch.__version__} has no flash attention for samples of different lengths")
    with stirred_tiny(subject) as decoder:
        if not (decoder.varlen or _sets_it_by_default(subject)):
            raise NotHere("it does not set varlen")
        ids = random_ids(subject, sum(LENGTHS))
        expected = logits_of(decoder, ids, LENGTHS)
        with _plain_varlen() as widths, doing("where segments have no groups, as with flash attention", subject):
            segments = Segments.of(LENGTHS, longest=max(LENGTHS))
            found = decoder.logits(decoder(decoder.embed(ids), segments))
    if not widths:
        raise Violation("sets varlen, but never calls nanovlm.attention, by which alone flash attention is used")
    if (off := distance(found, expected)) > ROUNDING:
        raise Violation(
            f"sets varlen, and without segments.groups its logits are others, off by {off:.1e} of their norm: set it "
            "only where nanovlm.attention is the only attention"
        )
    if decoder.varlen and (odd := next((width for width in widths if not suits_flash(width)), 0)):
        raise Violation(f"sets varlen with heads {odd} wide, which flash attention does not take: ask suits_flash")


def _sets_it_by_default(subject: Subject) -> bool:
    """The heads of a tiny one are often too narrow."""
    try:
        with torch.device("meta"):
            return bool(subject.cls(subject.cls.Config()).varlen)
    except (ValueError, NanoVLMError):  # an option that must be given, or weights that are not here
        return False


@contextmanager
def _plain_varlen() -> Iterator[list[int]]:
    """Within the block flash attention's kernel is a plain one, for any device; the width of each call's heads."""
    widths: list[int] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
        widths.append(q.shape[-1])
        ends = segments.cu_seqlens
        return core_attention.grouped_attention(q, k, v, Segments.of((ends[1:] - ends[:-1]).tolist()))

    with mock.patch("nanovlm.varlen.varlen_attention", attend):
        yield widths


@check("language_decoder")
@torch.no_grad()
def runs_where_its_input_is(subject: Subject) -> None:
    """runs on the device that it was moved to (tried with shapes alone, on a GPU that need not be there)."""
    decoder, segments = tiny_on_meta(subject), Segments.of(LENGTHS)
    with FakeTensorMode(allow_non_fake_inputs=True), doing("where all that it has and is given is on a GPU", subject):
        for module in decoder.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
        ids = torch.zeros(sum(LENGTHS), dtype=torch.int64, device="cuda")
        moved = segments.map(lambda tensor: torch.empty_like(tensor, device="cuda"))
        logits = decoder.logits(decoder(decoder.embed(ids), moved))
    if logits.device.type != "cuda":
        raise Violation(f"gives logits on {logits.device.type} where its weights are on a GPU")


@check("language_decoder")
def half_precision_does(subject: Subject) -> None:
    """gives nearly the same under autocast in bf16 and fp16, as it is trained on a GPU, with finite gradients."""
    decoder = tiny(subject).eval()
    require_precisions(subject, decoder, ("bf16", "fp16"), torch.device("cpu"))


@check("language_decoder")
def runs_on_cuda(subject: Subject) -> None:
    """gives nearly the same on a GPU, in fp32, bf16 and fp16, with flash attention where it sets `varlen`."""
    if not torch.cuda.is_available():
        raise NotHere("torch sees no GPU here")
    require_precisions(subject, tiny(subject).eval(), ("fp32", "bf16", "fp16"), torch.device("cuda"))


def require_precisions(subject: Subject, decoder: Any, names: Sequence[str], device: torch.device) -> None:
    """Violation unless a row, and a token with a cache after it, get nearly the logits of the CPU in fp32."""
    ids, one = random_ids(subject, sum(LENGTHS)), random_ids(subject, len(LENGTHS), seed=1)
    with torch.no_grad():
        expected = in_turns(decoder, ids, one, Segments.of(LENGTHS))
    decoder.to(device)
    for name in names:
        precision = Precision(name, device)
        where = f"under autocast in {name}" if device.type == "cpu" else f"on a GPU in {name}"
        longest = 0 if not decoder.varlen or varlen_obstacle(device, precision.dtype) else max(LENGTHS)
        segments = Segments.of(LENGTHS, longest).map(lambda tensor: tensor.to(device))
        with doing(where, subject), precision.autocast():
            found = in_turns(decoder, ids.to(device), one.to(device), segments)
        for what, logits, right in zip(("", " with a cache"), found, expected, strict=True):
            if not (off := distance(logits.detach().float().cpu(), right)) < HALF:
                raise Violation(
                    f"gives other logits {where}{what} than in fp32 on the CPU, off by {off:.0%} of their norm, where "
                    f"less than {HALF:.0%} is expected: compute what needs it in fp32, by x.float()"
                )
        require_gradients(decoder, found[0], f" {where}")


def in_turns(decoder: Any, ids: Tensor, one: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """The logits (T, V) of a row, and those (S, V) of one token more for each of its samples, read with a cache."""
    logits = decoder.logits(decoder(decoder.embed(ids), segments))
    with torch.no_grad():
        cache = decoder.new_cache(len(one), max(LENGTHS) + 1)
        decoder(decoder.embed(ids), segments, cache)
        return logits, decoder.logits(decoder(decoder.embed(one), cache.next(), cache))


@check("language_decoder")
def takes_adapters(subject: Subject) -> None:
    """takes LoRA's adapters: they change nothing at first, are all that is trained, and can be merged."""
    options = subject.config.model_dump()
    try:
        parse(type(subject.config), options | {"lora": {"rank": 2}}, "")
    except ConfigError:
        raise NotHere("its options have no lora") from None
    if find_spec("peft") is None:
        raise NotHere('peft is not installed: pip install "nanovlm[lora]"')
    decoder, ids = tiny(subject).eval(), random_ids(subject, sum(LENGTHS))
    expected = logits_of(decoder, ids, LENGTHS).detach()
    with doing("when adapters are added to its blocks", subject):
        add_lora(decoder, Lora(rank=2))
    logits = logits_of(decoder, ids, LENGTHS)
    if (off := distance(logits.detach(), expected)) > ROUNDING:
        raise Violation(f"gives other logits with adapters that add nothing yet, off by {off:.1e} of their norm")
    require_gradients(decoder, logits, " of LoRA's adapters")
    with torch.no_grad():
        for adapter in adapters(decoder):
            adapter.add_(0.02)
        adapted = logits_of(decoder, ids, LENGTHS)
        merge_lora(decoder)
        if (off := distance(logits_of(decoder, ids, LENGTHS), adapted)) > 10 * ROUNDING:
            raise Violation(
                f"gives other logits once its adapters are merged into the weights, off by {off:.1e}: a linear layer's "
                "weight is to be used by calling the layer, `self.query(x)`"
            )


@check("language_decoder")
def text_goes_in_and_out(subject: Subject) -> None:
    """has a text side: a tokenizer whose ids all have embeddings, and with which a conversation is read back."""
    config = subject.config
    if not isinstance(config, TextConfig):
        raise Violation("has a Config without a text side: derive it from nanovlm.TextConfig, not from ComponentConfig")
    size: int = config.vocab_size  # type: ignore[attr-defined]
    with doing("when Config.tiny()'s tokenizer and template are loaded", subject):
        text = load_text_format(config, size)
    prompt = text.prompt(QUESTION, 1).ids
    conversation = text.conversation([Turn(QUESTION, ANSWER)], 1)
    if (most := max((*prompt, *conversation.ids, *text.stop_ids))) >= size:
        raise Violation(f"has vocab_size={size}, and its tokenizer gives the id {most}")
    said = [token for token, own in zip(conversation.ids, conversation.supervised, strict=True) if own]
    for words, ids in ((QUESTION, prompt), (ANSWER, said)):
        if words not in (found := _read_back(text, ids)):
            raise Violation(f"has a tokenizer that writes {words!r} and reads back {found!r}")


def _read_back(text: TextFormat, ids: list[int]) -> str:
    return text.tokenizer.decode(ids)
