"""Samples as a dataset has them, made of nothing: photograph-like JPEGs of 640 x 480 pixels, each with a question."""

from __future__ import annotations

import io

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nanovlm.bench.synthetic import lengths_below, num_supervised
from nanovlm.data.dataset import Dataset, Sample, Turn
from nanovlm.seeding import generator

WIDTH, HEIGHT, QUALITY = 640, 480, 90
PICTURES = 32  # different ones
EDGES = 24  # rectangles in a picture
GRAIN = 4.0  # standard deviation of a sensor's noise, of 255
TEMPLATE = len("Question:  Answer:")  # what the text format adds to a question, in bytes
ENDING = 2  # and to an answer: the space before it, and the end of text


class Photographs(Dataset):
    """``size`` samples whose text, a token for each byte, is as long as real text in a real tokenizer's tokens."""

    def __init__(self, size: int, max_text_tokens: int) -> None:
        self.size, self.lengths = size, lengths_below(max_text_tokens)
        self.pictures = [jpeg(generator("photograph", i)) for i in range(min(size, PICTURES))]

    def __len__(self) -> int:
        return self.size

    def id(self, index: int) -> str:
        return str(index)

    def __getitem__(self, index: int) -> Sample:
        length = self.lengths.draw(generator("text", index))
        answer = max(1, num_supervised(length) - ENDING)
        question = max(1, length - answer - ENDING - TEMPLATE)
        turn = Turn("what? " * (question // 6) + "?" * (question % 6), "a" * answer)
        return Sample([self.pictures[index % len(self.pictures)]], [turn], self.id(index))


def jpeg(random: torch.Generator) -> bytes:
    """What makes a photograph slow to decode and to resize: smooth shades, hard edges, and noise everywhere."""
    coarse = torch.rand(1, 3, 6, 8, generator=random)
    pixels = F.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bicubic", align_corners=False)[0] * 255  # (3, H, W)
    for _ in range(EDGES):
        _draw_edge(pixels, random)
    pixels += GRAIN * torch.randn(pixels.shape, generator=random)
    image = Image.fromarray(pixels.clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy())
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _draw_edge(pixels: Tensor, random: torch.Generator) -> None:
    """A rectangle of another brightness."""
    top, left = (int(torch.randint(limit, (), generator=random)) for limit in (HEIGHT, WIDTH))
    height, width = (int(torch.randint(8, limit // 3, (), generator=random)) for limit in (HEIGHT, WIDTH))
    pixels[:, top : top + height, left : left + width] += 120 * torch.rand(3, 1, 1, generator=random) - 60
