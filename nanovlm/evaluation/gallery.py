"""A picture of some of a benchmark's items: what was shown, asked, answered, and right."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from nanovlm.data.dataset import Sample
from nanovlm.data.images import open_image
from nanovlm.evaluation.evaluator import Item

COLUMNS, ROWS = 4, 3
WIDTH, PICTURE, LINE, MARGIN = 300, 220, 20, 14
TEXT_LINES = 5
RIGHT, WRONG, INK, FRAME = "#1a7f37", "#cf222e", "#1f2328", "#d0d7de"


def draw_gallery(samples: Sequence[Sample | Item], items: Sequence[Item], file: Path) -> None:
    """Write a PNG of the first items that have a picture (if any has), and one of a single item's picture alone."""
    shown = [(sample.images[0], item) for _, sample, item in _with_pictures(samples, items)][: COLUMNS * ROWS]
    if not shown:
        return
    height = PICTURE + TEXT_LINES * LINE + 2 * MARGIN
    rows = -(-len(shown) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * WIDTH, rows * height), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=15)
    for place, (image, item) in enumerate(shown):
        x, y = place % COLUMNS * WIDTH + MARGIN, place // COLUMNS * height + MARGIN
        picture = open_image(image)
        scale = min((WIDTH - 2 * MARGIN) / picture.width, (PICTURE - MARGIN) / picture.height)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        canvas.paste(picture.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BICUBIC), (x, y))
        draw.rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline=FRAME)  # white pictures end somewhere, too
        y += PICTURE
        lines = [(line, INK) for line in textwrap.wrap(item.question, 34)[: TEXT_LINES - 2]]
        verdict, colour = ("", RIGHT) if item.score else (" - wrong", WRONG)
        said = textwrap.shorten(f"said: {item.prediction or '(nothing)'}", 36 - len(verdict))
        lines.append((said + verdict, colour))
        lines.append((textwrap.shorten(f"right: {item.answer}", 36), INK))
        for i, (line, ink) in enumerate(lines):
            draw.text((x, y + i * LINE), line, fill=ink, font=font)
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(file)
    _save_example(samples, items, file)


def _save_example(samples: Sequence[Sample | Item], items: Sequence[Item], gallery: Path) -> None:
    """The picture of the first item that has just one, alone: to ask the model about (``<step>-item<number>.png``)."""
    for i, sample, _ in _with_pictures(samples, items):
        if len(sample.images) == 1:
            open_image(sample.images[0]).save(gallery.with_name(f"{gallery.stem}-item{i}.png"))
            return


def _with_pictures(samples: Sequence[Sample | Item], items: Sequence[Item]) -> Iterator[tuple[int, Sample, Item]]:
    """Number, sample and item of what was asked about pictures."""
    for i, (sample, item) in enumerate(zip(samples, items, strict=True)):
        if isinstance(sample, Sample) and sample.images and not item.skipped:
            yield i, sample, item
