"""The Cauldron: 50 collections of questions and answers about pictures, and every dataset of its form (training only).

Source: Laurençon et al. 2024, arXiv 2405.02246; https://huggingface.co/datasets/HuggingFaceM4/the_cauldron

A row is a conversation about one or several pictures: ``{images: [...], texts: [{user, assistant, source}, ...]}``.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field

from nanovlm import ComponentConfig, ConfigError, Dataset, Sample, Turn, hookimpl, unknown
from nanovlm.components import Split
from nanovlm.data.huggingface import config_names, load_rows, one_colour, picture

SUBSETS = (  # noqa: SIM905 - a table of fifty words reads better than fifty strings
    "ai2d aokvqa chart2text chartqa clevr clevr_math cocoqa datikz diagram_image_to_text docvqa dvqa figureqa finqa "
    "geomverse hateful_memes hitab iam iconqa infographic_vqa intergps localized_narratives mapqa mimic_cgd "
    "multihiertt nlvr2 ocrvqa okvqa plotqa raven rendered_text robut_sqa robut_wikisql robut_wtq scienceqa "
    "screen2words spot_the_diff st_vqa tabmwp tallyqa tat_qa textcaps textvqa tqa vistext visual7w visualmrc vqarad "
    "vqav2 vsr websight"
).split()
LEFT_OUT = ("clevr_math", "okvqa", "spot_the_diff", "nlvr2", "mimic_cgd")  # by nanoVLM's recipe, which is the default
COLUMNS = ("images[]", "texts[].user", "texts[].assistant")


def _listed(value: Any) -> Any:
    """One subset may be just its name."""
    return [value] if isinstance(value, str) else value


class TheCauldron(Dataset):
    class Config(ComponentConfig):
        source: str = "HuggingFaceM4/the_cauldron"
        """A hub id, a folder of the same form, or `tiny`: two rows that come with the plugin, for tests."""
        subsets: Annotated[list[str], Field(min_length=1), BeforeValidator(_listed)] = [
            name for name in SUBSETS if name not in LEFT_OUT
        ]
        """Names as the source has them, or `all`; by default the 45 of the 50 that nanoVLM was trained on."""
        max_rows: Annotated[int, Field(ge=0)] = 0
        """Use at most so many rows of each subset, the first ones; 0 uses all."""
        images: Literal["all", "first"] = "all"
        """Of a row's pictures: all, or only the first, as nanoVLM was trained."""

        @classmethod
        def tiny(cls) -> Self:
            return cls(source="tiny", subsets=["all"])

    def __init__(self, config: Config, split: Split) -> None:
        self.config = config
        self.subsets = open_subsets(config) if split == "train" else {}
        lengths = [min(len(rows), config.max_rows or len(rows)) for rows in self.subsets.values()]
        self.ends = list(accumulate(lengths))  # of each subset, among all indices

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def id(self, index: int) -> str:
        return "{}/{}".format(*self.place(index))

    def __getitem__(self, index: int) -> Sample:
        subset, row = self.place(index)
        content = self.subsets[subset][row]
        images = (content["images"] or [])[: 1 if self.config.images == "first" else None]
        turns = [Turn(text["user"] or "", text["assistant"] or "") for text in content["texts"] or [] if text]
        return Sample([picture(image) for image in images], turns, self.id(index), category=subset)

    def place(self, index: int) -> tuple[str, int]:
        """The subset, and the row within it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        n = bisect_right(self.ends, index)
        return list(self.subsets)[n], index - (self.ends[n - 1] if n else 0)


def open_subsets(config: TheCauldron.Config) -> dict[str, Sequence[dict[str, Any]]]:
    """The rows of each subset that the config names; ConfigError for one that the source lacks."""
    if config.source == "tiny":
        return {"tiny": tiny_rows()}
    there = config_names(config.source)
    names = there if "all" in config.subsets else config.subsets
    for name in names:
        if name not in there:
            raise ConfigError(
                f"subsets: {unknown('subset', name, there)}\n  in {config.source!r}; `all` takes them all"
            )
    return {name: load_rows(config.source, name, "train", COLUMNS) for name in names}


def tiny_rows() -> list[dict[str, Any]]:
    """Two rows as the dataset has them, of one turn and of two."""
    return [
        {
            "images": [one_colour(colour)],
            "texts": [{"user": question, "assistant": f"{colour}.", "source": "tiny"} for question in questions],
        }
        for colour, questions in (("red", ["What colour?"]), ("blue", ["What colour is this?", "And the background?"]))
    ]


@hookimpl
def register_datasets(register):
    register("the_cauldron", TheCauldron)
