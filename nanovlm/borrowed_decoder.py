"""A decoder borrowed from transformers: its head by itself, and a trial of whether it keeps samples apart."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.attention import Segments
from nanovlm.components import LanguageDecoder, device_of
from nanovlm.errors import ConfigError, summary


class Trial:
    """A few short samples, and their logits as the library computes them, one sample at a time."""

    LENGTHS = (7, 4, 19, 7)
    STEPS = 2
    """How many of a sample's tokens are read one by one."""

    def __init__(self, decoder: LanguageDecoder, model: Any, tolerance: float) -> None:
        """``model`` is the library's, with ``decoder`` around it. ``tolerance`` is of a token's logits, relative to
        their norm: rounding gives 1e-7 to 1e-6, a leak 1e-4 and more (measured on thirty families, random weights).
        """
        self.decoder, self.kind, self.tolerance = decoder, model.config.model_type, tolerance
        size = model.get_input_embeddings().num_embeddings
        ids = torch.randint(size, (sum(self.LENGTHS),), generator=torch.Generator().manual_seed(0))
        self.samples = list(ids.to(device_of(decoder)).split(self.LENGTHS))
        self.samples[3] = torch.cat((self.samples[3][:1], self.samples[0][1:]))  # the first, but for its first token
        try:
            self.expected = [model(input_ids=sample[None], use_cache=False).logits[0] for sample in self.samples]
        except Exception as error:  # sizes that do not go together, or a model that needs more than text
            raise ConfigError(f"{self.kind} fails on a trial text: {summary(error)}") from None
        if not all(logits.isfinite().all() for logits in self.expected):
            raise ConfigError(
                f"{self.kind} gives logits that are no numbers: are its weights broken (a run's that blew up)?"
            )
        if distance(self.expected[3][1:], self.expected[0][1:]) < 10 * tolerance:
            raise ConfigError(f"{self.kind} cannot be tried out: a sample's first token changes nothing after it")

    def choose(self, what: str, choices: Iterable[str], attempt: Callable[[], float]) -> None:
        """Set the decoder's ``what`` to the first of ``choices`` with which it is right."""
        found = []
        for choice in choices:
            setattr(self.decoder, what, choice)
            try:
                error = attempt()
            except Exception as problem:  # a model that does not take the option at all
                found.append(f"{choice}: {summary(problem)}")
                continue
            if error < self.tolerance:
                return
            found.append(f"{choice}: off by {error:.1e}")
        raise ConfigError(
            f"{self.kind} is not for hf_decoder: several samples at once get other logits than transformers gives each "
            f"by itself ({'; '.join(found)}); use another architecture, for example llama or qwen3"
        )

    def of_a_row(self) -> float:
        """How far the logits of all samples, laid end to end, are off."""
        segments = self.segments([len(sample) for sample in self.samples])
        hidden = self.decoder(self.decoder.embed(torch.cat(self.samples)), segments)
        return distance(self.decoder.logits(hidden), torch.cat(self.expected))

    def of_generation(self) -> float:
        """How far the logits of the last tokens are off, when they are read one by one after all others."""
        steps = self.STEPS
        prompts = [sample[:-steps] for sample in self.samples]
        segments = self.segments([len(prompt) for prompt in prompts])
        cache = self.decoder.new_cache(len(prompts), max(self.LENGTHS))
        hidden = [self.decoder(self.decoder.embed(torch.cat(prompts)), segments, cache)[segments.last]]
        for step in range(-steps, 0):
            ids = torch.stack([sample[step] for sample in self.samples])
            hidden.append(self.decoder(self.decoder.embed(ids), cache.next(), cache))
        logits = self.decoder.logits(torch.stack(hidden, dim=1))  # (S, steps + 1, V)
        return distance(logits, torch.stack([expected[-steps - 1 :] for expected in self.expected]))

    def segments(self, lengths: list[int]) -> Segments:
        return Segments.of(lengths).map(lambda tensor: tensor.to(device_of(self.decoder)))


def distance(found: Tensor, expected: Tensor) -> float:
    """The greatest relative error of a token's logits (..., V); infinite where one is no number."""
    errors = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    return float(errors.nan_to_num(float("inf")).max())


@contextmanager
def stirred(model: nn.Module) -> Iterator[None]:
    """Within the block no weights are all alike: a branch that starts at zero could hide a leak."""
    alike = [p for p in model.parameters() if p.numel() > 1 and (p == p.flatten()[0]).all()]
    before = [parameter.detach().clone() for parameter in alike]
    with torch.no_grad():
        for parameter in alike:
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in zip(alike, before, strict=True):
                parameter.copy_(values)


class Given(nn.Module):
    """Stands where the layers were, and gives what it gets: the head's input."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> Any:
        return Output((inputs_embeds,))


class Output(tuple[Tensor]):
    """An output of layers that has nothing but the last hidden states."""

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        """Caches, attentions, ... of whatever name: none."""


def head_of(model: Any, body: nn.Module) -> nn.Module:
    """The same model without its layers: it shares all other modules, and gives the logits of hidden states."""
    first, *inner = next(name for name, module in model.named_modules() if module is body).split(".")
    given = Given()
    given.__dict__ |= dict.fromkeys(inner, given)  # OPT's head asks for model.decoder
    head: nn.Module = copy.copy(model)
    head._modules = model._modules | {first: given}
    return head


def token_tables(model: Any) -> dict[str, Tensor]:
    """The embedding and the head by name, with a bias if there is one: what has a row for each token."""
    parts = (model.get_input_embeddings(), model.get_output_embeddings())
    own = {id(tensor) for part in parts if part is not None for tensor in part.parameters()}
    return {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in own}


def without_masks(model: Any) -> None:
    """For a model on ``meta``: whether its rows need a mask it asks the numbers, which are not there."""
    from transformers import AttentionInterface

    AttentionInterface.register("unmasked", unmasked)
    model.config._attn_implementation = "unmasked"


def unmasked(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Attention of the right shapes and FLOPs, as transformers calls it: (S, H, L, d) -> (S, L, H, d), weights."""
    result = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return result.transpose(1, 2), None
