"""FineVision: 185 collections of conversations about pictures, with four ratings of every turn (training only).

Source: Wiedmann et al. 2025, arXiv 2510.17269; https://huggingface.co/datasets/HuggingFaceM4/FineVision

A row is The Cauldron's, ``{images: [...], texts: [{user, assistant}, ...]}``, and one list of ratings for each kind, a
number from 1 (worst) to 5 for each turn. A turn rated below a minimum is left out, and counted by the kind of rating; a
turn without a rating is kept. The minima's default of 1 leaves out nothing, and is nanoVLM's own.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from nanovlm import SkipSample, Turn, hookimpl
from nanovlm.data.huggingface import Columns
from nanovlm.data.subset_streams import StreamedSubsets
from nanovlm.data.subsets import SubsetsConfig, tiny_row

RATINGS = ("relevance", "image_correspondence", "visual_dependency", "formatting")
Minimum = Annotated[int, Field(ge=1, le=5)]


class FineVision(StreamedSubsets):
    class Config(SubsetsConfig):
        source: str = "HuggingFaceM4/FineVision"
        """A hub id, a folder of the same form, or `tiny`: two rows that come with the plugin, for tests."""
        relevance_min: Minimum = 1
        """The lowest rating of an answer's relevance to its question with which a turn is kept."""
        image_correspondence_min: Minimum = 1
        """The same of how well question and answer correspond to the picture."""
        visual_dependency_min: Minimum = 1
        """The same of how far the answer depends on the picture."""
        formatting_min: Minimum = 1
        """The same of how well the text is formatted."""

        @classmethod
        def tiny(cls) -> Self:
            return cls(source="tiny", visual_dependency_min=3)

    config: Config
    columns: ClassVar[Columns] = {**StreamedSubsets.columns, **{f"{rating}_ratings[]": "numbers" for rating in RATINGS}}
    tiny_rows = (
        tiny_row("red", "What colour?") | {f"{rating}_ratings": [5] for rating in RATINGS},
        tiny_row("blue", "What colour is this?", "Is this a colour?")
        | {f"{rating}_ratings": [4, 2] for rating in RATINGS},
    )

    def turns(self, content: dict[str, Any]) -> tuple[list[Turn], Mapping[str, int]]:
        turns, _ = super().turns(content)
        kept, left_out = [], Counter[str]()
        for n, turn in enumerate(turns):
            if reason := self.too_low(content, n):
                left_out[reason] += 1
            else:
                kept.append(turn)
        if turns and not kept:
            raise SkipSample("every turn rated too low")
        return kept, left_out

    def too_low(self, content: dict[str, Any], n: int) -> str:
        """The first kind of rating that turn ``n`` falls short of; empty if it is good enough."""
        for rating in RATINGS:
            given = content[f"{rating}_ratings"] or []
            minimum = getattr(self.config, f"{rating}_min")
            if n < len(given) and given[n] is not None and given[n] < minimum:
                return f"{rating} below {minimum}"
        return ""


@hookimpl
def register_datasets(register):
    register("finevision", FineVision)
