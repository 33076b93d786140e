"""The Cauldron: 50 collections of questions and answers about pictures, and every dataset of its form (training only).

Source: Laurençon et al. 2024, arXiv 2405.02246; https://huggingface.co/datasets/HuggingFaceM4/the_cauldron

A row is a conversation about one or several pictures: ``{images: [...], texts: [{user, assistant, source}, ...]}``.
"""

from typing import Annotated, Self

from pydantic import Field

from nanovlm import hookimpl
from nanovlm.data.subset_streams import StreamedSubsets
from nanovlm.data.subsets import NAME_OR_NAMES, SubsetsConfig, tiny_row

SUBSETS = (  # noqa: SIM905 - a table of fifty words reads better than fifty strings
    "ai2d aokvqa chart2text chartqa clevr clevr_math cocoqa datikz diagram_image_to_text docvqa dvqa figureqa finqa "
    "geomverse hateful_memes hitab iam iconqa infographic_vqa intergps localized_narratives mapqa mimic_cgd "
    "multihiertt nlvr2 ocrvqa okvqa plotqa raven rendered_text robut_sqa robut_wikisql robut_wtq scienceqa "
    "screen2words spot_the_diff st_vqa tabmwp tallyqa tat_qa textcaps textvqa tqa vistext visual7w visualmrc vqarad "
    "vqav2 vsr websight"
).split()
LEFT_OUT = ("clevr_math", "okvqa", "spot_the_diff", "nlvr2", "mimic_cgd")  # by nanoVLM's recipe, which is the default


class TheCauldron(StreamedSubsets):
    class Config(SubsetsConfig):
        known_sizes = {"HuggingFaceM4/the_cauldron": 169_000_000_000}  # all 50 subsets
        source: str = "HuggingFaceM4/the_cauldron"
        """A hub id, a folder of the same form, or `tiny`: two rows that come with the plugin, for tests."""
        subsets: Annotated[list[str], Field(min_length=1), NAME_OR_NAMES] = [
            name for name in SUBSETS if name not in LEFT_OUT
        ]
        """Names as the source has them, or `all`; by default the 45 of the 50 that nanoVLM was trained on."""

        @classmethod
        def tiny(cls) -> Self:
            return cls(source="tiny", subsets=["all"])

    tiny_rows = (tiny_row("red", "What colour?"), tiny_row("blue", "What colour is this?", "And the background?"))


@hookimpl
def register_datasets(register):
    register("the_cauldron", TheCauldron)
