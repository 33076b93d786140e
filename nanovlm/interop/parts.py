"""How a component says what it is in transformers, so that a model of it can be exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable


class TransformersPart(NamedTuple):
    """A component as a part of an ``Idefics3ForConditionalGeneration``, transformers' SigLIP with a decoder behind it.

    config: the options of that part's config: ``vision_config``, ``text_config`` (among them ``vocab_size`` and
        ``tie_word_embeddings``), or for a projector the whole one's.
    rename: from a tensor's name in transformers, within the part, to its name in the component.
    preprocessor: of an encoder, the options of the image processor that it needs.
    """

    config: dict[str, Any]
    rename: Callable[[str], str] = str
    preprocessor: dict[str, Any] = {}


@runtime_checkable
class Exportable(Protocol):
    """What a component implements if it can be exported to transformers; without it, it is refused by name."""

    def to_transformers(self) -> TransformersPart:
        """Raises ConfigError for options that transformers cannot express."""
