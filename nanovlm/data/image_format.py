"""What stands around a picture in the text, and how that format resizes pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanovlm.components import ImageSpec, TextConfig


@dataclass(frozen=True)
class ImageFormat:
    """Markers are special tokens, one token each; they count as text, and the model never learns to say them."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    number: str = ""
    """Plain text before all that, where a conversation has several pictures; they are counted from 0."""
    within_message: bool = False
    """Where pictures stand that no ``<image>`` places: before what the user says first, or before the whole text."""
    longest_edge: int = 0
    """Resize pictures twice: first to a longer side of so many times the encoder's (``ImageSpec.longest_edge``)."""

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.before + self.after))

    def resized(self, image: ImageSpec) -> ImageSpec:
        """An encoder's pictures as this format resizes them; an encoder's own ``longest_edge`` stands."""
        return replace(image, longest_edge=image.longest_edge or self.longest_edge * image.size)


PLAIN = ImageFormat()
FORMATS = {
    "plain": PLAIN,
    # As transformers' Idefics3Processor writes a picture that is not split (5.24). The factor is that of its default
    # sizes, and SmolVLM's; pictures of 4:1 then lose a thirtieth of what 1 would cost (0.2/255 for 6/255 in the mean).
    "idefics3": ImageFormat(
        before=("<fake_token_around_image>", "<global-img>"),
        after=("<fake_token_around_image>",),
        within_message=True,
        longest_edge=4,
    ),
    # As upstream nanoVLM (2025) writes a picture that fits into one tile.
    "nanovlm": ImageFormat(before=("<|global_image|>",), number="<image: {}>", within_message=True),
}


def markers(config: TextConfig) -> list[str]:
    """A decoder's special tokens beside its tokenizer's own, in the order of their ids: asked for, or the format's."""
    return list(dict.fromkeys((*config.extra_tokens, *FORMATS[config.image_format].markers)))
