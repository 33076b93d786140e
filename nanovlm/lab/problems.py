"""What is wrong with several variants, each problem said once."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

FEW = 3  # variants that are all named


def said_once(problems: Mapping[str, Sequence[str]], variants: Sequence[str]) -> list[str]:
    """The ``problems`` by variant, each of them once, behind the names of those that have it.

    Of all ``variants`` they are named by the part of their names that they alone share, by their whole names, or by
    their number. A problem of every variant is the experiment's own, and stands for itself.
    """
    having: dict[str, list[str]] = {}
    for variant in variants:
        for message in problems.get(variant, ()):
            for problem in _parts(message):
                having.setdefault(problem, []).append(variant)
    return [f"{_who(list(dict.fromkeys(names)), variants, problems)}{problem}" for problem, names in having.items()]


def _parts(message: str) -> list[str]:
    """The problems that ``errors.join`` made one message of."""
    if not message.startswith("- "):
        return [message]
    return [part.rstrip("\n") for part in re.split(r"^- ", message, flags=re.MULTILINE)[1:]]


def _who(having: Sequence[str], variants: Sequence[str], failed: Collection[str]) -> str:
    if len(having) == len(variants):
        return ""
    for part in having[0].split(","):
        sharing = [variant for variant in variants if part in variant.split(",")]
        hidden = [variant for variant in sharing if variant in failed]  # their other problems may hide this one
        if sharing == list(having) or (len(having) > 1 and sharing == hidden and set(having) <= set(sharing)):
            return f"{part}: "
    others = f" and {len(having) - FEW} more" if len(having) > FEW else ""
    return f"{', '.join(having[:FEW])}{others}: "
