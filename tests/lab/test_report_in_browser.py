"""The report in a real browser: opened from the disk, sorted, filtered, on a phone and in the dark."""

import shutil

import pytest
from compared import comparison

from nanovlm.lab.report.writer import write_report

playwright = pytest.importorskip("playwright.sync_api", reason='needs playwright: pip install "nanovlm[browser]"')

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(not BROWSER, reason="needs chromium or google-chrome on the PATH")

WORDS = ("p.summary", ".verdicts li", ".flags li", "td", ".detail", "figcaption", ".gained", ".lost", "dt", "th button")
COLOURS = """element => {
  const behind = [];
  for (let node = element; node; node = node.parentElement) behind.push(getComputedStyle(node).backgroundColor);
  return [getComputedStyle(element).color, behind.find((colour) => !/, 0\\)|transparent/.test(colour))];
}"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return write_report(comparison(), tmp_path_factory.mktemp("report"))[0].as_uri()


@pytest.fixture
def opened(browser, address):
    """``opened(**options)``: the page; whatever it complained about, or asked for, fails the test."""
    pages, complaints, requests = [], [], []

    def opened(width=1280, **options):
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert not complaints
    assert {url for url in requests if not url.startswith("data:")} == {address}


def column(table, number):
    """The words of a column, from top to bottom."""
    return table.locator(f"tbody tr > :nth-child({number})").all_inner_texts()


def test_it_opens_with_its_title_and_every_figure_has_been_drawn(opened):
    page = opened()
    assert page.title() == "pixel_shuffle: the verdict", "and no question has taken it over"
    figures = page.locator("figure img")
    assert figures.count() == 5
    for figure in figures.all():
        assert figure.evaluate("image => image.naturalWidth") > 500
        assert len(figure.get_attribute("alt")) > 60


def test_a_table_is_sorted_by_a_click_on_a_header_up_and_down(opened):
    table = opened().locator("table", has_text="Accuracy on shapes, 600 questions")
    header = table.locator("th", has_text="accuracy, %")
    assert column(table, 1) == ["factor=2", "factor=1", "factor=4"]
    header.get_by_role("button").click()
    assert column(table, 1) == ["factor=4", "factor=2", "factor=1"]
    assert header.get_attribute("aria-sort") == "ascending"
    header.get_by_role("button").click()
    assert column(table, 1) == ["factor=1", "factor=2", "factor=4"]
    assert header.get_attribute("aria-sort") == "descending"


def test_a_table_is_sorted_by_the_keyboard_numbers_as_numbers_and_what_is_missing_last(opened):
    page = opened()
    table = page.locator("table", has_text="Accuracy on shapes, 600 questions")
    difference = table.locator("th", has_text="difference").get_by_role("button")
    difference.focus()
    page.keyboard.press("Enter")
    assert column(table, 1) == ["factor=4", "factor=1", "factor=2"]
    page.keyboard.press("Enter")
    assert column(table, 1) == ["factor=1", "factor=4", "factor=2"], "the baseline has no difference"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert column(table, 1) == ["factor=1", "factor=2", "factor=4"]
    assert table.locator("[aria-sort]").count() == 1


def test_flipped_questions_are_filtered_by_what_is_chosen_and_counted(opened):
    page = opened()
    cards, count = page.locator(".card:visible"), page.locator("output")
    assert cards.count() == 13 and count.inner_text() == "13 of 13 shown"
    page.locator("form").get_by_label("variant").select_option("factor=1")
    assert cards.count() == 7 and count.inner_text() == "7 of 13 shown"
    page.locator("form").get_by_label("direction").select_option("lost")
    assert cards.count() == 2 and count.inner_text() == "2 of 13 shown"
    page.locator("form").get_by_label("category").select_option("kind")
    assert cards.count() == 1 and "What colour is it (9)?" in cards.inner_text()
    page.locator("form").get_by_label("text").fill("no such words")
    assert cards.count() == 0 and count.inner_text() == "0 of 13 shown"


def test_flipped_questions_are_found_by_their_words_whatever_is_in_them(opened):
    page = opened()
    page.locator("form").get_by_label("text").fill("<SCRIPT>")
    assert page.locator(".card:visible").count() == 1
    page.keyboard.press("Enter")  # sends nothing
    assert page.locator("output").inner_text() == "1 of 13 shown"


@pytest.mark.parametrize("width", [390, 320])
def test_on_a_phone_only_tables_scroll_sideways_and_text_can_be_read(opened, width):
    page = opened(width, device_scale_factor=2, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("getComputedStyle(document.body).fontSize") == "16px"
    box = page.locator(".scroll").first
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    box.evaluate("box => box.scrollLeft = 200")
    name = box.locator("tbody th").first.bounding_box()
    assert 0 <= name["x"] < width / 2, "names stay in sight"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(opened, scheme):
    page = opened(color_scheme=scheme)
    for where in WORDS:
        ink, paper = (colour(text) for text in page.locator(where).first.evaluate(COLOURS))
        assert (luminance(paper) < 0.1) == (scheme == "dark")
        assert contrast(ink, paper) >= 4.5, where


def test_figures_follow_the_scheme(opened):
    for scheme in ("light", "dark"):
        image = opened(color_scheme=scheme).locator("figure picture").first
        source = image.locator("source").get_attribute("srcset")
        assert (image.locator("img").evaluate("image => image.currentSrc") == source) == (scheme == "dark")


def colour(text):
    return [float(number) for number in text[text.index("(") + 1 : -1].split(",")[:3]]


def luminance(rgb):
    """Relative luminance (WCAG 2.2)."""
    shares = [value / 255 for value in rgb]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    """WCAG 2.2; text needs 4.5."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
