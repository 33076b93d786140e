"""Questions about coloured shapes, drawn on the spot: no download, and learnt in minutes.

Every picture shows one to three shapes, no two of one kind or colour, each in a quarter of its own. A question asks for
a colour, a kind, a place or a number; its three or four answers are equally likely, so that guessing gets 29 % right.
Sample ``i`` of a split is a pure function of (seed, split, i). Which shape of which colour stands in which quarter
decides the split: no arrangement that is asked about was ever trained on.
"""

import hashlib
import random
from typing import Annotated, Self

from PIL import Image, ImageDraw
from pydantic import Field

from nanovlm import Benchmark, ComponentConfig, Sample, Turn, hookimpl
from nanovlm.data.dataset import Split

COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 220), "yellow": (240, 200, 30)}
KINDS = ("circle", "square", "triangle")
PLACES = ("top left", "top right", "bottom left", "bottom right")
ANSWERS = {"colour": tuple(COLOURS), "kind": KINDS, "place": PLACES, "number": ("1", "2", "3")}
TEST_SHARE = 0.1  # of the arrangements

Arrangement = list[tuple[int, str, str]]  # (quarter, kind, colour)


class Shapes(Benchmark):
    class Config(ComponentConfig):
        seed: int = 0
        """Decides every picture and question."""
        train_size: Annotated[int, Field(ge=0)] = 50_000
        """Samples in the train split."""
        test_size: Annotated[int, Field(ge=0)] = 400
        """Questions in the test split."""
        image_size: Annotated[int, Field(ge=16)] = 64
        """Pixels along each side."""

        @classmethod
        def tiny(cls) -> Self:
            return cls(train_size=40, test_size=8, image_size=16)

    max_new_tokens = 16

    def __init__(self, config: Config, split: Split) -> None:
        self.config, self.split = config, split

    def __len__(self) -> int:
        return self.config.train_size if self.split == "train" else self.config.test_size

    def id(self, index: int) -> str:
        return f"shapes-{self.config.seed}-{self.split}-{index}"

    def __getitem__(self, index: int) -> Sample:
        rng = random.Random(self.id(index))
        category = rng.choice(list(ANSWERS))
        answer = rng.choice(ANSWERS[category])
        while True:  # the answer first: the few arrangements of the test split hold more of some than of others
            shapes = arrange(rng, self.split)
            turn = ask(category, shapes, rng.choice(shapes))
            if turn.assistant == answer:
                break
        return Sample([draw(rng, shapes, self.config.image_size)], [turn], self.id(index), category=category)


def arrange(rng: random.Random, split: Split) -> Arrangement:
    """One to three shapes whose arrangement belongs to ``split``."""
    number = rng.randint(1, 3)
    while True:
        quarters = sorted(rng.sample(range(4), number))
        shapes = list(zip(quarters, rng.sample(KINDS, number), rng.sample(list(COLOURS), number), strict=True))
        if (split == "test") == (_hash(shapes) < TEST_SHARE):
            return shapes


def _hash(shapes: Arrangement) -> float:
    """A number in [0, 1) that depends on the arrangement alone."""
    return int.from_bytes(hashlib.blake2b(str(shapes).encode(), digest_size=4).digest(), "big") / 2**32


def draw(rng: random.Random, shapes: Arrangement, size: int) -> Image.Image:
    """The picture of an arrangement: each shape of a random size, at a random place in its quarter."""
    shade = rng.randint(200, 255)
    image = Image.new("RGB", (size, size), (shade, shade, shade))
    canvas = ImageDraw.Draw(image)
    half = size // 2
    for quarter, kind, colour in shapes:
        side = rng.randint(half * 3 // 4, half * 7 // 8)
        x = quarter % 2 * half + rng.randint(0, half - side)
        y = quarter // 2 * half + rng.randint(0, half - side)
        draw_shape(canvas, kind, COLOURS[colour], (x, y, x + side - 1, y + side - 1))
    return image


def draw_shape(
    canvas: ImageDraw.ImageDraw, kind: str, colour: tuple[int, int, int], box: tuple[int, int, int, int]
) -> None:
    left, top, right, bottom = box
    if kind == "circle":
        canvas.ellipse(box, fill=colour)
    elif kind == "square":
        canvas.rectangle(box, fill=colour)
    else:
        canvas.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=colour)


def ask(category: str, shapes: Arrangement, subject: tuple[int, str, str]) -> Turn:
    """A question of one category, about one shape (or about all of them)."""
    quarter, kind, colour = subject
    if category == "colour":
        return Turn(f"What colour is the {kind}?", colour)
    if category == "kind":
        return Turn(f"What is {colour}?", kind)
    if category == "place":
        return Turn(f"Where is the {kind}?", PLACES[quarter])
    return Turn("How many shapes?", str(len(shapes)))


@hookimpl
def register_datasets(register):
    register("shapes", Shapes)
