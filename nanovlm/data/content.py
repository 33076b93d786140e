"""What samples hold, as bytes to be hashed: data that were edited under the same ids are other data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from nanovlm.blueprint import located
from nanovlm.data.images import ImageSource, open_image
from nanovlm.errors import SkipSample

if TYPE_CHECKING:
    from nanovlm.data.mixture import Member

READ = 256  # samples at most whose content is hashed: a run should not read all of its data before it begins


def spread(count: int) -> list[int]:
    """Up to READ numbers below ``count``, evenly spaced; all of them where there are no more."""
    chosen = min(count, READ)
    return [n * count // chosen for n in range(chosen)]


def content(member: Member) -> Iterator[bytes]:
    """A sample's turns and pictures; of one that cannot be used, the reason."""
    try:
        with located(member.origin):
            sample = member.read()
    except SkipSample as skip:
        yield skip.reason.encode()
        return
    yield f"{len(sample.turns)} turns, {len(sample.images)} pictures".encode()
    for turn in sample.turns:
        yield turn.user.encode()
        yield turn.assistant.encode()
    yield from map(_picture, sample.images)


def _picture(source: ImageSource) -> bytes:
    """The file as it is; the pixels only of what was made in memory, for decoding takes many times as long."""
    if isinstance(source, bytes):
        return source
    file = getattr(source, "filename", "") if isinstance(source, Image.Image) else source
    try:
        if file:
            return Path(file).read_bytes()
        image = open_image(source)
        return f"{image.width} x {image.height}".encode() + image.tobytes()
    except SkipSample as skip:
        return skip.reason.encode()
    except (OSError, ValueError) as error:  # no file is there, or none of such a name can be
        return type(error).__name__.encode()
