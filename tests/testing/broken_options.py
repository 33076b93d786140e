"""Options, runs and imports that go wrong: a sound companion with one small change."""

from pydantic import BaseModel, ConfigDict, model_validator

from nanovlm import ComponentConfig, Sample, Turn
from nanovlm.testing.companions import Data, Diary, Encoder, Projector


class Undocumented(Projector):
    class Config(ComponentConfig):
        depth: int = 1


class LoosePart(BaseModel):
    rank: int = 1
    """Documented."""


class UndocumentedPart(Projector):
    class Config(ComponentConfig):
        parts: list[LoosePart] = []
        """Its parts."""


class TakesAnything(Projector):
    class Config(ComponentConfig):
        model_config = ConfigDict(extra="allow")
        depth: int = 1
        """How deep."""


class DropsOptions(Projector):
    class Config(ComponentConfig):
        depth: int = 1
        """How deep."""

        @model_validator(mode="before")
        @classmethod
        def known_ones(cls, options):
            return {key: value for key, value in options.items() if key == "depth"}


class RefusesByItself(Projector):
    class Config(ComponentConfig):
        depth: int = 1
        """How deep."""

        @model_validator(mode="before")
        @classmethod
        def known_ones(cls, options):
            if options.keys() - {"depth"}:
                raise ValueError("no")
            return options


class Pair(Projector):
    class Config(ComponentConfig):
        sizes: tuple[int, int] = (1, 2)
        """A pair, which YAML has not."""


class Forgetful(Projector):
    class Config(ComponentConfig):
        depth: int = 1
        """How deep."""

        @model_validator(mode="before")
        @classmethod
        def deeper(cls, options):
            return {"depth": options["depth"] + 1} if options else options


class Growing(Projector):
    class Config(ComponentConfig):
        depth: int = 1
        """How deep."""

        def resolved(self):
            return self.model_copy(update={"depth": self.depth + 1})


class Constant(Projector):
    def forward(self, patches):
        return super().forward(patches) * 0


class Wordless(Data):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return Sample(sample.images, [Turn("What colour?", " ")], sample.id)


class MostlyWordless(Wordless):
    def __init__(self, config, split):
        super().__init__(config, split)
        self.colours = self.colours * 10

    def id(self, index):
        return f"{super().id(index)}/{index}"

    def __getitem__(self, index):
        return Data.__getitem__(self, index) if index == 1 else super().__getitem__(index)


class RefusesToTrain(Encoder):
    def forward(self, pixels):
        if self.training:
            raise RuntimeError("not for training")
        return super().forward(pixels)


class WritesOverTheLog(Diary):
    def finished(self, summary):
        self.run.metrics.write_text("")


def plugin(top: str) -> str:
    """The source of a plugin that registers a sound projector, with a line of its own at the top."""
    return f"""import time
{top}
from nanovlm import hookimpl
from nanovlm.testing.companions import Projector

class Mine(Projector):
    pass

@hookimpl
def register_projectors(register):
    register("mine", Mine)
"""


ENDS = "import os, sys; 'pytest' in sys.modules or os._exit(3)"

BROKEN: dict[str, list[tuple[str, type | str, str]]] = {
    "options are documented": [
        ("projector", Undocumented, "says nothing about depth: put a docstring under each option of `Config`"),
        ("projector", UndocumentedPart, "says nothing about parts.rank: "),
    ],
    "unknown options are refused": [
        ("projector", TakesAnything, "takes unknown options without a word in `Config`: use ComponentConfig or"),
        ("projector", UndocumentedPart, "takes unknown options without a word in `LoosePart` (of parts)"),
        ("projector", DropsOptions, "takes the unknown option 'depthx' without a word: does a validator"),
        ("projector", RefusesByItself, "does not suggest 'depth' for 'depthx', but says: "),
    ],
    "options survive the run folder": [
        ("projector", Pair, "fails to write its options into a run's experiment.yaml, and to read them back: "),
        ("projector", Forgetful, "reads depth back from a run's experiment.yaml as something else"),
        ("projector", Growing, "resolves depth again to something else"),
    ],
    "learns under the trainer": [
        ("projector", Constant, "does not bring the loss down in 5 steps, at learning rates of 0.01 and 0.001: "),
        ("dataset", Wordless, "fails under the trainer: DataError: every sample was skipped: 20 no answer"),
        ("dataset", MostlyWordless, "something to learn in 1 of 5 steps, so most samples were skipped: {"),
        ("vision_encoder", RefusesToTrain, "fails under the trainer: RuntimeError: not for training"),
    ],
    "watching changes nothing": [("tracker", WritesOverTheLog, "changes the run that it watches: its losses are []")],
    "imports quickly": [
        ("projector", plugin("import matplotlib"), "imports matplotlib as soon as it is imported"),
        ("projector", plugin(ENDS), "cannot be imported in a process of its own: it ends the process"),
        ("projector", plugin("time.sleep(1.2)"), "s to import, where 1 s is the most"),
    ],
    "imports without a trace": [
        ("projector", plugin("print('hello')"), "prints 'hello' when it is imported"),
        ("projector", plugin("import os; os.environ['A'] = 'b'"), "changes the environment (os.environ) when it is"),
        ("projector", plugin("import torch; torch.manual_seed(0)"), "changes the random state of torch when it is"),
    ],
}  # fmt: skip
