import pytest
from PIL import Image

from nanovlm import Sample, Turn
from nanovlm.evaluation.evaluator import Item, numbered
from nanovlm.evaluation.gallery import draw_gallery

TURNS = [Turn("What?", "red")]


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (9, 9), colour)


@pytest.fixture
def drawn(tmp_path):
    """``drawn(*numbers of pictures, skipped=...)``: the names of the files that a gallery of such items takes."""

    def drawn(*counts: int, skipped: int | None = None) -> list[str]:
        samples = [Sample([picture(colour) for colour in COLOURS[:n]], TURNS, str(i)) for i, n in enumerate(counts)]
        items = [
            Item(str(i), "What?", "red", "red", 1.0, skipped="gone" if i == skipped else None)
            for i in range(len(samples))
        ]
        draw_gallery(samples, items, tmp_path / "quiz" / "7.png")
        return sorted(file.name for file in tmp_path.rglob("*.png"))

    return drawn


COLOURS = ("red", "blue", "green")


def test_one_picture_is_left_to_ask_about(drawn, tmp_path):
    assert drawn(1, 1) == ["7-item0.png", "7.png"]
    assert Image.open(tmp_path / "quiz" / "7-item0.png").getcolors() == [(81, (255, 0, 0))]


def test_it_is_the_first_that_can_be_asked_with_one_picture(drawn):
    assert drawn(0, 2, 1, 1, skipped=2) == ["7-item3.png", "7.png"]


def test_questions_about_several_pictures_leave_none(drawn):
    assert drawn(2, 3) == ["7.png"]


def test_nothing_is_drawn_where_nothing_can_be_seen(drawn):
    assert drawn(0, 1, skipped=1) == []


def test_benchmarks_of_one_name_are_numbered():
    assert numbered(["a", "b", "a", "a"]) == ["a", "b", "a-2", "a-3"]
