"""A comparison as files: ``report.html`` (in one piece, to be shared), ``report.md``, ``summary.json`` and figures."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from nanovlm.data.conversation import IMAGE_MARK
from nanovlm.errors import ConfigError
from nanovlm.files import write_whole
from nanovlm.lab.comparison import Comparison, Flip
from nanovlm.lab.report.figures import draw_figures
from nanovlm.lab.report.markdown import markdown
from nanovlm.lab.report.pictures import Thumbnails, embedded, thumbnails
from nanovlm.lab.report.sections import FLIPPED, Report, report_of
from nanovlm.lab.report.tables import NO_CATEGORY

HERE = Path(__file__).parent
MOST_FLIPS = 60  # that the HTML shows: with pictures of 160 pixels less than a megabyte


def write_report(comparison: Comparison, folder: Path) -> list[Path]:
    """Write all files into ``folder`` and return their paths, the one to be opened first; ConfigError if it cannot be.

    Nothing but the comparison is read, and the flipped questions' pictures if they can be had.
    """
    shown = choose_flips(comparison.flips)
    small = thumbnails(comparison, shown)
    pictures = draw_figures(comparison)
    report = report_of(comparison, pictures, small.notes)
    figures = {folder / "figures" / f"{picture.name}.png": picture.light for picture in pictures}
    texts = {
        folder / "report.html": html(comparison, report, shown, small),
        folder / "report.md": markdown(report),
        folder / "summary.json": json.dumps(comparison.to_json(), indent=2, ensure_ascii=False) + "\n",
    }
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for file, content in figures.items():
            file.write_bytes(content)
        for file, text in texts.items():
            write_whole(file, text)
    except OSError as error:
        raise ConfigError(f"{folder}: no report can be written there ({error.strerror}); name another folder") from None
    return [*texts, *figures]


def choose_flips(flips: Sequence[Flip], most: int = MOST_FLIPS) -> list[Flip]:
    """At most so many, in their order: of each benchmark, variant and direction as many as of another."""
    groups: dict[tuple[str, str, bool], list[int]] = {}
    for number, flip in enumerate(flips):
        groups.setdefault((flip.benchmark, flip.variant, flip.gained > 0), []).append(number)
    in_turn = [number for row in zip_longest(*groups.values()) for number in row if number is not None]
    return [flips[number] for number in sorted(in_turn[:most])]


@dataclass(frozen=True)
class Card:
    """A flipped question as it is shown."""

    benchmark: str
    variant: str
    category: str
    direction: str
    question: str
    answer: str
    seeds: str
    baseline_said: str
    variant_said: str
    images: list[str]


def html(comparison: Comparison, report: Report, flips: Sequence[Flip], small: Thumbnails) -> str:
    """One page that loads nothing. All that is not of the page itself is escaped, and no script but its own may run."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    pages = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    pages.filters["breakable"] = lambda text: Markup(re.sub(r"(?<=[,=_/-])", "<wbr>", str(escape(text))))
    script, style = ((HERE / name).read_text(encoding="utf-8") for name in ("report.js", "report.css"))
    cards = [_card(comparison, flip, small.of(flip)) for flip in flips]
    page: str = pages.get_template("report.html").render(
        report=report,
        flipped_title=FLIPPED,
        baseline=comparison.baseline,
        cards=cards,
        all_flips=len(comparison.flips),
        choices=_choices(cards),
        embedded=lambda content: embedded("png", content),
        script=Markup(script),
        style=Markup(style),
        script_hash=_hash(script),
        style_hash=_hash(style),
    )
    return page


def _hash(text: str) -> str:
    """As a content security policy names what may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _choices(cards: Sequence[Card]) -> dict[str, list[str]]:
    """What the cards can be filtered by; nothing where all are alike."""
    found = {
        key: sorted({getattr(card, key) for card in cards}) for key in ("benchmark", "variant", "category", "direction")
    }
    return {key: values for key, values in found.items() if len(values) > 1}


def _card(comparison: Comparison, flip: Flip, images: list[str]) -> Card:
    return Card(
        benchmark=flip.benchmark,
        variant=flip.variant,
        category=flip.category or NO_CATEGORY,
        direction="gained" if flip.gained > 0 else "lost",
        question=flip.question.replace(IMAGE_MARK, " ").strip(),
        answer=flip.answer,
        seeds=_by_seeds(flip),
        baseline_said=_said(comparison, flip, flip.baseline_said),
        variant_said=_said(comparison, flip, flip.variant_said),
        images=images,
    )


def _by_seeds(flip: Flip) -> str:
    """``2 of 3 seeds``, or by how much where scores are graded."""
    if not {*flip.by_seed} <= {-1, 0, 1}:
        return f"by {abs(flip.gained):.2f}"
    same_way = [gained for gained in flip.by_seed if gained * flip.gained > 0]
    return f"{len(same_way)} of {len(flip.by_seed)} seeds" if len(flip.by_seed) > 1 else ""


def _said(comparison: Comparison, flip: Flip, said: Sequence[str]) -> str:
    """Equal answers together: ``red (seeds 0 and 2), blue (seed 1)``."""
    by_name = {variant.name: variant.seeds for variant in comparison.variants}
    seeds = sorted(set(by_name[comparison.baseline]) & set(by_name[flip.variant]))
    groups: dict[str, list[int]] = {}
    for seed, words in zip(seeds, said, strict=True):
        groups.setdefault(words.strip() or "(nothing)", []).append(seed)
    if len(groups) == 1:
        return next(iter(groups))
    return ", ".join(f"{words} ({_seeds(found)})" for words, found in groups.items())


def _seeds(numbers: Sequence[int]) -> str:
    return f"seed{'' if len(numbers) == 1 else 's'} {' and '.join(map(str, numbers))}"
