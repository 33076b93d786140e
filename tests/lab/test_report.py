"""The report: verdicts first, everything in it, nothing from outside, and nothing that data can do to it."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest
from compared import HOSTILE, comparison, costs, flip
from markdown_it import MarkdownIt
from page import Page

from nanovlm.errors import ConfigError
from nanovlm.lab.comparison import Unfinished
from nanovlm.lab.report import writer as report_module
from nanovlm.lab.report.markdown import escaped
from nanovlm.lab.report.pictures import Thumbnails
from nanovlm.lab.report.writer import MOST_FLIPS, choose_flips, write_report

ORDER = [flip.id for flip in comparison().flips]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of the report of the comparison made by hand."""
    folder = tmp_path_factory.mktemp("report")
    write_report(comparison(), folder)
    return folder


@pytest.fixture(scope="module")
def page(folder) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def markdown(folder) -> str:
    return (folder / "report.md").read_text(encoding="utf-8")


def rendered(markdown: str) -> Page:
    """As GitHub would show it, nearly."""
    return Page(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown))


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take their time, and not every test looks at them."""
    monkeypatch.setattr(report_module, "draw_figures", lambda comparison: [])


def test_every_file_is_written_and_told_the_page_first(tmp_path):
    files = write_report(comparison(benchmarks=("mmstar",), flips=()), tmp_path / "new" / "folder")
    assert [file.name for file in files[:3]] == ["report.html", "report.md", "summary.json"]
    assert sorted(files) == sorted(file for file in (tmp_path / "new" / "folder").rglob("*") if file.is_file())


def test_a_report_is_written_again_over_an_earlier_one(folder, tmp_path, undrawn):
    write_report(comparison(), tmp_path)
    write_report(comparison(name="another"), tmp_path)
    assert "another" in (tmp_path / "report.md").read_text()


def test_a_folder_that_cannot_be_written_is_said(tmp_path, undrawn):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match=r"taken: no report can be written there \(.+\); name another folder"):
        write_report(comparison(), tmp_path / "taken")


def test_the_summary_is_the_whole_comparison_with_all_flips(folder):
    summary = json.loads((folder / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary == json.loads(json.dumps(comparison().to_json()))
    assert [flip["id"] for flip in summary["flips"]] == ORDER


def test_verdicts_come_first_in_both(page, markdown):
    for text in (page.text, markdown):
        places = [text.index(words) for words in ("worse, cheaper", "it does not look", "Not paired", "Accuracy on")]
        assert places == sorted(places)


def test_runs_that_are_not_paired_are_named_and_those_that_are_said_to_be(page, tmp_path, undrawn):
    assert "factor=4, seed 1: the training data differ" in page.text
    write_report(comparison(unpaired=()), tmp_path)
    assert "Paired: runs of one seed" in (tmp_path / "report.md").read_text()
    assert "Not paired" not in Page((tmp_path / "report.html").read_text()).text


def test_the_page_and_the_markdown_have_the_same_tables(page, markdown):
    shown = rendered(markdown).rows
    assert shown == page.rows
    assert ["factor=4", "71.0 [68.0, 74.0]", "-6.0 [-7.3, -4.7]", "0.008", "2.4", "34.0", "28.0"] in shown
    assert ["factor=1", "657 k", "64", "950 M", "9,600", "140", "1.0 GiB", "89 s", "3"] in shown
    assert ["factor=4", "0.310 [0.300, 0.320]", "+0.110 [+0.100, +0.120]"] in shown
    assert ["factor=1", "shapes", "place", "1", "1", "0"] in shown
    assert ["factor=4", "2", "failed", "out of memory", "factor=4/s2.log"] in shown
    assert ["factor=4", "projector.factor = 4", "0, 1, 2"] in shown


def test_words_of_cost_are_explained_in_both(page, markdown):
    for text in (page.text, rendered(markdown).text):
        assert (
            "Cheaper and dearer are of the whole training: by its FLOPs, or by its time where FLOPs are equal." in text
        )
        assert "FLOPs a sample are an average over the samples that were trained on." in text
        assert "The plan shows those of the longest sample, which are more." in text


def test_unknown_costs_are_said_to_be(tmp_path, undrawn):
    first, *others = comparison().variants
    unknown = replace(first, costs=costs(16, 1e9, 300.0, parameters=None, flops_per_sample=None, wall_seconds=None))
    write_report(comparison(variants=(unknown, *others)), tmp_path)
    row = ["factor=2", "not known", "16", "not known", "9,600", "300", "1.0 GiB", "not known", "3"]
    assert row in Page((tmp_path / "report.html").read_text()).rows


def test_the_markdown_links_every_figure_with_a_text(folder, markdown):
    images = [
        token for block in MarkdownIt().parse(markdown) for token in block.children or () if token.type == "image"
    ]
    assert sorted(folder / image.attrs["src"] for image in images) == sorted((folder / "figures").iterdir())
    assert all(len(image.content) > 60 for image in images) and len(images) == 5
    assert any("factor=4 71.0 % [68.0, 74.0] at 260 M" in image.content.replace("\\", "") for image in images)


def test_the_page_asks_nothing_of_the_network(page):
    sources = [value for _, found in page.tags for key, value in found.items() if key in ("src", "srcset", "href")]
    assert len(sources) > 10 and all(source.startswith("data:") for source in sources)
    assert not re.search(r"@import|url\(", page.source)
    policy = next(found["content"] for found in page.all("meta") if "content" in found and found.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy


def test_the_page_is_made_of_what_its_parts_mean(page):
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    assert len(page.all("table")) == len(page.all("caption")) == 8
    assert all(found.get("scope") in ("col", "row") for found in page.all("th"))
    assert len(page.all("figure")) == len(page.all("figcaption")) == 5
    assert all(len(found["alt"]) > 20 for found in page.all("img"))
    names = [found["id"] for _, found in page.tags if "id" in found]
    assert len(names) == len(set(names))
    assert {found["aria-labelledby"] for _, found in page.tags if "aria-labelledby" in found} <= set(names)


def test_whatever_data_say_is_shown_and_does_nothing(tmp_path, undrawn):
    said, made = f'{HOSTILE}"><img src=x onerror=alert(1)>|`*_', comparison()
    variants = tuple(
        replace(
            variant,
            name=f"{variant.name}{said}",
            changes={said: {"name": said}},
            scores={f"b{said}": replace(score, sentence=said, flags=(said,), categories={said: score.accuracy})},
            validation_sentence=said,
        )
        for variant in made.variants
        for score in [variant.scores["shapes"]]
    )
    hostile = comparison(
        name=said,
        baseline=variants[0].name,
        benchmarks=(f"b{said}",),
        variants=variants,
        flips=(flip(0, variants[1].name, 1.0, question=said, answer=said, category=said, baseline_said=(said,) * 3),),
        unpaired=(said,),
        unfinished=(Unfinished(said, 0, said, said, said),),
        notes=(said,),
    )
    write_report(hostile, tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.all("script")) == 1 and not page.all("img") and page.text.count(said) > 15
    assert not [key for _, found in page.tags for key in found if key.startswith("on")]
    read = rendered((tmp_path / "report.md").read_text())
    assert not read.all("script", "img", "a", "code", "em") and read.text.count(said) > 10
    assert read.rows == page.rows, "no word begins a new cell"


@pytest.mark.parametrize(
    "text",
    [
        *("a_b", "_a_", "a|b", "*a*", "`a`", "<b>", "&lt;", "[a](b)", "[a]: b", "a\nb", "\\*", "~~a~~", "[1.0, 2.0]"),
        *("$a$", "# a", "- a", "+ a", "1. a", "12) a", "> a", "---", "-2.1 [-3, 1]", "#1"),
    ],
)
def test_markdown_shows_a_text_as_it_is(text):
    read = rendered(f"- {escaped(text)}")
    assert read.text.strip() == text.replace("\n", " ")
    assert [tag for tag, _ in read.tags] == ["ul", "li"]


def test_dollars_begin_no_formula():
    assert escaped("$a$") == r"\$a\$"


def test_markdown_that_means_nothing_is_left_as_it_is():
    assert escaped("-2.1 points, 1.5 x, +3") == "-2.1 points, 1.5 x, +3"
    assert escaped("pixel_shuffle: 61.2 % [58.0, 64.3]") == "pixel_shuffle: 61.2 % [58.0, 64.3]"


def test_many_flips_are_bounded_and_the_rest_is_told(tmp_path, undrawn, monkeypatch):
    flips = tuple(flip(i, "factor=4", 1.0 if i % 2 else -1.0) for i in range(1000))
    picture = f"data:image/png;base64,{'A' * 12_000}"  # more than a picture of 160 pixels takes
    monkeypatch.setattr(Thumbnails, "of", lambda self, flip: [picture])
    write_report(comparison(flips=flips), tmp_path)
    source = (tmp_path / "report.html").read_text()
    page = Page(source)
    assert len([found for found in page.all("li") if found.get("class") == "card"]) == MOST_FLIPS
    assert "These are 60 of 1,000 flipped questions; summary.json lists all." in page.text
    assert len(source) < 1_000_000
    assert len(json.loads((tmp_path / "summary.json").read_text())["flips"]) == 1000


def test_every_variant_and_direction_has_its_share_of_the_flips_that_are_shown():
    flips = [flip(i, "factor=4", 1.0) for i in range(90)] + [flip(i, "factor=1", -1.0) for i in range(90, 96)]
    chosen = choose_flips(flips, 20)
    assert [one.variant for one in chosen] == ["factor=4"] * 14 + ["factor=1"] * 6
    assert chosen == [one for one in flips if one in chosen], "their order stays"
    assert choose_flips(flips[:3], 20) == flips[:3] and choose_flips([]) == []


def test_what_was_said_stands_beside_the_right_answer_by_seed(page, tmp_path, undrawn):
    assert "blue (seeds 0 and 1), red (seed 2)" in page.text and "2 of 3 seeds" in page.text
    graded = flip(
        0, "factor=4", 0.55, by_seed=(0.8, 0.0, 0.85), baseline_said=("a", "", "a"), variant_said=("b", "b", "b")
    )
    write_report(comparison(flips=(graded,)), tmp_path)
    text = Page((tmp_path / "report.html").read_text()).text
    assert "a (seeds 0 and 2), (nothing) (seed 1)" in text and "by 0.55" in text


def test_a_question_without_an_end_is_told_once_in_full_and_cut_short_for_the_pictures(tmp_path, undrawn, monkeypatch):
    monkeypatch.setattr(Thumbnails, "of", lambda self, flip: ["data:,", "data:,"])
    write_report(comparison(flips=(flip(0, "factor=4", 1.0, question="whence " * 1500),)), tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert page.source.count("whence") < 1600 and page.text.count("whence") == 1500
    assert all(100 < len(found["alt"]) < 250 for found in page.all("img"))


def test_settings_are_written_as_in_yaml_and_small_memory_in_mebibytes(tmp_path, undrawn):
    base, other, _ = comparison().variants
    changes = {"a.b": None, "a.c": True, "a.d": {"name": "x", "tied": False}}
    small = replace(other, changes=changes, costs=replace(other.costs, peak_memory_bytes=3 * 2**20))
    write_report(comparison(variants=(base, small), flips=()), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "a.b = null, a.c = true, a.d = x (tied = false)" in text
    assert "| 3.0 MiB |" in text and "| 1.0 GiB |" in text


@pytest.mark.parametrize(
    ("by_seed", "words"),
    [
        ((1, 1, 1, 1, -1), "gained by factor=4, 4 of 5 seeds"),
        ((-1, -1, 0), "lost by factor=4, 2 of 3 seeds"),
        ((0.8, 0.7, 0.5), "gained by factor=4, by 0.67"),
        ((1,), "gained by factor=4 shapes"),
    ],
)
def test_a_flip_says_with_how_many_seeds_it_went_its_way(by_seed, words, tmp_path, undrawn):
    said = ("red",) * len(by_seed)
    made = flip(0, "factor=4", mean(by_seed), by_seed=by_seed, baseline_said=said, variant_said=said)
    seeds = tuple(range(len(by_seed)))
    variants = tuple(replace(variant, seeds=seeds) for variant in comparison().variants)
    write_report(comparison(flips=(made,), variants=variants), tmp_path)
    assert words in " ".join(Page((tmp_path / "report.html").read_text()).text.split())


def test_runs_without_a_common_seed_are_not_said_to_be_paired(tmp_path, undrawn):
    base, *others = comparison().variants
    apart = comparison(variants=(base, *(replace(other, seeds=(7, 8, 9)) for other in others)), unpaired=(), flips=())
    write_report(apart, tmp_path)
    assert "aired" not in (tmp_path / "report.md").read_text()


def test_answers_that_differ_are_counted_where_none_of_them_is_a_flip(tmp_path, undrawn):
    base, other, _ = comparison().variants
    variants = (base, replace(other, scores={"shapes": replace(other.scores["shapes"], differing=41)}))
    write_report(comparison(variants=variants, flips=()), tmp_path)
    assert (
        "Of 41 answers that are better or worse than the baseline's with any seed, 0 are so with most seeds"
        in (tmp_path / "report.md").read_text()
    )


def test_one_variant_alone_and_no_benchmark_have_a_report(tmp_path):
    first = comparison().variants[0]
    alone = comparison(variants=(first,), flips=(), unpaired=(), unfinished=(), notes=())
    write_report(alone, tmp_path / "alone")
    assert "Paired" not in (tmp_path / "alone" / "report.md").read_text()
    bare = replace(first, scores={}, validation_loss=None, runs=())
    write_report(replace(alone, variants=(bare,), benchmarks=()), tmp_path / "bare")
    assert "Baseline factor=2, 3 seeds." in Page((tmp_path / "bare" / "report.html").read_text()).text
