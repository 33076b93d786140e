"""Figures: what they show is right, they can be drawn whatever a comparison holds, and their bytes repeat."""

import io
import itertools
import random
from dataclasses import replace

import matplotlib
import pytest
from compared import SEEDS, comparison, costs, estimate, score, variant
from PIL import Image

from nanovlm.lab.comparison import Comparison
from nanovlm.lab.report.accuracy_figures import Point, accuracy_range, costs_of, pareto
from nanovlm.lab.report.drawing import DARK, DPI, LIGHT, WIDTH, apart, looks, needs_key, short_labels, shorten_middle
from nanovlm.lab.report.figures import draw_figures
from nanovlm.lab.statistics import Estimate


def several(count: int, categories: int = 0, name: str = "projector.factor={}") -> Comparison:
    """So many variants of one benchmark with so many categories."""
    generator = random.Random(0)
    shares = {f"a category with number {c}": generator.random() for c in range(categories)}
    names = [name.format(number) for number in range(count)]
    variants = [
        variant(
            names[number],
            {"projector.factor": number} if number else {},
            level=0.2 + 0.02 * generator.random(),
            costs=costs(number, 1e9 * (1 + 9 * generator.random()), 300),
            scores={"shapes": score(0.4 + 0.3 * generator.random(), 0.01 if number else None, shares, "")},
        )
        for number in range(count)
    ]
    return comparison(baseline=names[0], benchmarks=("shapes",), variants=tuple(variants), flips=())


def without(made: Comparison, **known: object) -> Comparison:
    """All costs replaced."""
    return replace(made, variants=tuple(replace(v, costs=replace(v.costs, **known)) for v in made.variants))


UNUSUAL = {
    "one variant": several(1, categories=2),
    "no FLOPs": without(comparison(), flops_per_sample=None),
    "FLOPs far apart": replace(
        comparison(),
        variants=tuple(
            replace(v, costs=replace(v.costs, flops_per_sample=10.0 ** (6 + 2 * i)))
            for i, v in enumerate(comparison().variants)
        ),
    ),
    "no intervals": replace(
        several(2),
        variants=tuple(
            replace(v, scores={"shapes": replace(v.scores["shapes"], accuracy=Estimate(0.5))})
            for v in several(2).variants
        ),
    ),
    "twelve variants, thirty categories": several(12, categories=30),
    "long names": several(3, categories=1, name="projector=resampler-num_queries={},learning_rate.projector=0.002"),
    "mathematics in long names": several(3, categories=1, name="$\\frac{{{}$ is longer than it may be"),
    "mathematics in names": several(3, categories=1, name="$\\frac{{{}$ & x"),
    "all right": replace(
        several(2),
        variants=tuple(
            replace(v, scores={"shapes": replace(v.scores["shapes"], accuracy=Estimate(1.0, 0.99, 1.0))})
            for v in several(2).variants
        ),
    ),
    "no curve": replace(
        several(2),
        variants=tuple(replace(v, runs=tuple(replace(r, curve=[]) for r in v.runs)) for v in several(2).variants),
    ),
    "no benchmark": replace(
        several(2), benchmarks=(), variants=tuple(replace(v, scores={}) for v in several(2).variants)
    ),
}


@pytest.mark.parametrize("made", UNUSUAL.values(), ids=UNUSUAL)
@pytest.mark.filterwarnings("error")
def test_whatever_a_comparison_holds_its_figures_can_be_drawn(made):
    for picture in draw_figures(made):
        for content in (picture.light, picture.dark):
            with Image.open(io.BytesIO(content)) as image:
                assert image.format == "PNG" and image.width == round(WIDTH * DPI)
                assert len(image.convert("L").getcolors()) > 10, "nothing was drawn"
        assert picture.title in picture.text and picture.caption


def test_there_is_a_figure_for_each_benchmark_for_categories_where_there_are_some_and_two_for_the_loss():
    names = [picture.name for picture in draw_figures(comparison())]
    assert names == ["accuracy-shapes", "categories-shapes", "accuracy-mmstar", "loss-by-samples", "loss-by-time"]
    assert draw_figures(UNUSUAL["no curve"])[-1].name == "accuracy-shapes"
    assert [picture.name for picture in draw_figures(UNUSUAL["no benchmark"])] == ["loss-by-samples", "loss-by-time"]


def test_the_text_beside_a_figure_says_its_numbers():
    texts = {picture.name: picture.text for picture in draw_figures(comparison())}
    assert "Accuracy on shapes against FLOPs a sample" in texts["accuracy-shapes"]
    assert "factor=4 71.0 % [68.0, 74.0] at 260 M" in texts["accuracy-shapes"]
    assert "place: factor=2 55.0 %, factor=1 55.0 %, factor=4 49.0 %" in texts["categories-shapes"]
    assert "over 3 seeds) in 6,400 samples" in texts["loss-by-samples"]
    assert "over 3 seeds) in 20 seconds" in texts["loss-by-time"]


def test_what_a_figure_leaves_out_is_said_in_its_caption():
    captions = {picture.name: picture.caption for picture in draw_figures(several(12, categories=30))}
    assert "The first 6 of 12 variants" in captions["categories-shapes"]
    assert "20 of 30 categories" in captions["categories-shapes"]
    made = comparison()
    first, *others = made.variants
    unknown = replace(first, costs=replace(first.costs, flops_per_sample=None), runs=())
    captions = {p.name: p.caption for p in draw_figures(replace(made, variants=(unknown, *others)))}
    assert "Not drawn, as their FLOPs are not known: factor=2." in captions["accuracy-shapes"]
    assert "Without a curve: factor=2." in captions["loss-by-samples"]


def test_equal_input_gives_equal_bytes_whatever_the_user_has_set():
    made = several(2, categories=1)
    first = draw_figures(made)
    with matplotlib.rc_context({"font.family": "serif", "font.size": 20, "axes.facecolor": "red"}):
        assert draw_figures(made) == first


def test_both_themes_have_their_own_paper():
    picture = draw_figures(several(1))[0]
    for content, theme in ((picture.light, LIGHT), (picture.dark, DARK)):
        with Image.open(io.BytesIO(content)) as image:
            assert "#{:02x}{:02x}{:02x}".format(*image.convert("RGB").getpixel((1, 1))) == theme.paper


def test_the_pareto_line_has_just_the_points_that_no_other_one_beats():
    generator = random.Random(0)
    for _ in range(50):
        values = [(generator.randint(1, 9), generator.randint(1, 9) / 10) for _ in range(generator.randint(1, 12))]
        points = [Point(str(i), cost, Estimate(value)) for i, (cost, value) in enumerate(values)]
        unbeaten = {
            (cost, value)
            for cost, value in values
            if not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in values)
        }
        front = [(point.cost, point.accuracy.value) for point in pareto(points)]
        assert set(front) == unbeaten and front == sorted(front)


def test_costs_are_those_of_the_whole_training_where_variants_trained_on_different_numbers_of_samples():
    made = comparison()
    unit, points = costs_of(made.variants, "shapes")
    assert unit == "FLOPs a sample" and [point.cost for point in points] == [0.41e9, 0.95e9, 0.26e9]
    first, *others = made.variants
    longer = replace(first, costs=replace(first.costs, samples=2 * first.costs.samples))
    unit, points = costs_of([longer, *others], "shapes")
    assert unit == "FLOPs of the training" and points[0].cost == pytest.approx(0.41e9 * 19_200)


def test_an_axis_of_accuracies_holds_every_interval_and_blows_up_no_noise():
    low, high = accuracy_range([estimate(0.5, 0.001), estimate(0.502, 0.001)])
    assert low < 0.499 and high > 0.503 and high - low >= 0.1 - 1e-9
    low, high = accuracy_range([Estimate(1.0, 0.2, 1.0)])
    assert low < 0.2 and 1 < high < 1.02


def test_variants_look_different_and_the_baseline_has_the_colour_of_the_text():
    names = [f"factor={number}" for number in range(1, 16)]
    chosen = looks(names, "factor=1", DARK)
    assert len({(look.colour, look.marker) for look in chosen.values()}) == len(names)
    assert len({(look.colour, look.dashes) for look in chosen.values()}) == len(names)
    assert chosen["factor=1"].colour == DARK.ink


def test_labels_are_names_or_what_is_left_without_a_shared_key_or_numbers():
    assert short_labels(["factor=1", "factor=2"]) == {"factor=1": "factor=1", "factor=2": "factor=2"}
    assert short_labels(["projector=pixel_shuffle", "projector=mlp"])["projector=mlp"] == "mlp"
    long = ["projector=resampler-num_queries=4", "size=small"]
    assert short_labels(long) == {long[0]: "1", long[1]: "2"} and needs_key(long)
    assert not needs_key(["1", "2"]) and needs_key([f"factor={number}" for number in range(8)])


def test_a_long_label_keeps_both_of_its_ends():
    assert shorten_middle("short", 9) == "short"
    assert shorten_middle("a rather long label", 11) == "a rat...bel" and len("a rat...bel") == 11


def test_places_that_are_too_close_are_moved_apart_and_others_stay():
    assert apart([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert apart([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    generator = random.Random(0)
    for count in range(1, 15):
        places = sorted(generator.random() ** 3 for _ in range(count))
        moved = apart(places, 0.08)
        assert all(b - a >= min(0.08, 1 / max(1, count - 1)) - 1e-9 for a, b in itertools.pairwise(moved))
        assert all(-1e-9 <= place <= 1 + 1e-9 for place in moved)


def test_the_fixture_is_what_its_tests_take_it_for():
    assert len(comparison().variants) == len(SEEDS) == 3
