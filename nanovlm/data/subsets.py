"""Datasets whose rows are conversations about pictures, in subsets that are named: The Cauldron's form (training only).

A row is ``{images: [...], texts: [{user, assistant}, ...]}``, with as many pictures and turns as it likes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from math import inf
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from nanovlm.components import ComponentConfig
from nanovlm.data.dataset import Dataset, Row, Sample, Split, Subset, Turn
from nanovlm.data.huggingface import Columns, config_names, load_rows, one_colour, picture, stream_rows
from nanovlm.errors import ConfigError, unknown

Content = dict[str, Any]


def listed(value: Any) -> Any:
    """One subset may be just its name."""
    return [value] if isinstance(value, str) else value


NAME_OR_NAMES = BeforeValidator(listed, json_schema_input_type=str | list[str])


class SubsetsConfig(ComponentConfig):
    source: str
    """A hub id, a folder of the same form, or `tiny`: a few rows that come with the plugin, for tests."""
    subsets: Annotated[list[str], Field(min_length=1), NAME_OR_NAMES] = ["all"]
    """Names as the source has them, or `all`."""
    weights: dict[str, float] = {}
    """How often an epoch passes over the rows of a subset, by its name; 1 where none is given. Counted on max_rows."""
    max_rows: Annotated[int, Field(ge=0)] = 0
    """Use at most so many rows of each subset, the first ones; 0 uses all."""
    images: Literal["all", "first"] = "all"
    """Of a row's pictures: all, or only the first, as nanoVLM was trained."""
    streaming: bool = False
    """Read rows while they are trained on, instead of downloading all of them first."""

    @field_validator("weights")
    @classmethod
    def _more_than_nothing(cls, weights: dict[str, float]) -> dict[str, float]:
        for name, weight in weights.items():
            if not 0 < weight < inf:
                raise ValueError(
                    f"{name}={weight} should be more than 0; to leave a subset out, do not name it in subsets"
                )
        return weights


class Subsets(Dataset):
    """Indices run through the subsets in the order of their names in the config; an id is ``subset/row``.

    How the rows are a stream is told in subset_streams.py.
    """

    Config: ClassVar[type[SubsetsConfig]]
    columns: ClassVar[Columns] = {"images[]": "pictures", "texts[].user": "text", "texts[].assistant": "text"}
    tiny_rows: ClassVar[Sequence[Content]] = ()

    def __init__(self, config: SubsetsConfig, split: Split) -> None:
        self.config, self.streaming = config, config.streaming
        self.rows = self._open() if split == "train" else {}
        sizes = [] if self.streaming else [len(rows) for rows in self.rows.values()]
        self.ends = list(accumulate(min(size, config.max_rows or size) for size in sizes))  # among all indices

    def turns(self, content: Content) -> tuple[list[Turn], Mapping[str, int]]:
        """A row's turns, and how many of them are left out, by reason."""
        texts = [text or {} for text in content["texts"] or []]
        return [Turn(text.get("user") or "", text.get("assistant") or "") for text in texts], {}

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def id(self, index: int) -> str:
        return "{}/{}".format(*self._place(index))

    def __getitem__(self, index: int) -> Sample:
        name, row = self._place(index)
        return self.sample(Row(f"{name}/{row}", self.rows[name][row], name))

    def sample(self, row: Row) -> Sample:
        turns, left_out = self.turns(row.content)
        images = (row.content["images"] or [])[: 1 if self.config.images == "first" else None]
        return Sample([picture(image) for image in images], turns, row.id, category=row.subset, left_out=left_out)

    def subsets(self) -> list[Subset]:
        sizes = [end - start for start, end in zip([0, *self.ends], self.ends, strict=False)]
        return [Subset(name, size, self._weight(name)) for name, size in zip(self.rows, sizes, strict=True)]

    def _weight(self, name: str) -> float:
        return self.config.weights.get(name, 1.0)

    def _place(self, index: int) -> tuple[str, int]:
        """The subset, and the row within it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        n = bisect_right(self.ends, index)
        return list(self.rows)[n], index - (self.ends[n - 1] if n else 0)

    def _open(self) -> dict[str, Any]:
        """The rows of each subset that the config names; ConfigError for one that the source lacks."""
        source, subsets = self.config.source, self.config.subsets
        there = ["tiny"] if source == "tiny" else config_names(source)
        names = there if "all" in subsets else list(dict.fromkeys(subsets))
        _refuse_unknown("subsets", names, there, f"\n  in {source!r}; `all` takes them all")
        _refuse_unknown("weights", self.config.weights, names)
        if source == "tiny":
            return {"tiny": self.tiny_rows}
        load = stream_rows if self.streaming else load_rows
        return {name: load(source, name, "train", self.columns) for name in names}


def _refuse_unknown(option: str, names: Iterable[str], known: Sequence[str], hint: str = "") -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{option}: {unknown('subset', name, known)}{hint}")


def tiny_row(colour: str, *questions: str) -> Content:
    """A row as the source has it: one picture of a colour, and questions that are all answered with it."""
    texts = [{"user": question, "assistant": f"{colour}.", "source": "tiny"} for question in questions]
    return {"images": [one_colour(colour)], "texts": texts}
