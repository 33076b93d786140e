"""The three components of a model by name, with all of their options: what is known before any weight exists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nanovlm.components import LanguageDecoder, TextConfig, VisionEncoder
from nanovlm.data.conversation import read_template
from nanovlm.data.dataset import Benchmark, Dataset, Split
from nanovlm.data.image_format import FORMATS
from nanovlm.errors import ConfigError, DataError, NanoVLMError, PluginError, join
from nanovlm.experiment import Experiment, Named
from nanovlm.hub import HubError
from nanovlm.merging import ROLES as ROLES
from nanovlm.places import without
from nanovlm.plugins import Registries
from nanovlm.registry import Plugin, Registry
from nanovlm.whole_model import refuse_missing, resolved


@dataclass(frozen=True)
class Part:
    """One component: where it stands in the experiment, its class, its validated options, and its plugin."""

    where: str
    name: str
    cls: type
    config: Any
    plugin: Plugin
    start: str = ""
    """The ``weights`` of a component that has no such option: a whole model (see whole_model.py)."""

    @classmethod
    def of(cls, registry: Registry, where: str, name: str, options: dict[str, Any], also: Iterable[str] = ()) -> Part:
        """``also`` are the keys that an experiment understands here beside the component's own options."""
        entry = registry.find(name, where)
        return cls(where, name, entry.cls, registry.configure(name, options, where, also), entry.plugin)

    @classmethod
    def of_model(cls, registry: Registry, role: str, name: str, options: dict[str, Any]) -> Part:
        """A model's component: any may have ``weights``."""
        try:
            own = registry.find(name, role).cls.Config.model_fields  # type: ignore[attr-defined]
        except ConfigError:
            refuse_missing(registry, role, name, options.get("weights"))
            raise
        if "weights" in own or not isinstance(start := options.get("weights"), str):
            return cls.of(registry, role, name, options)
        rest = without(options, ["weights"], by=None)
        return replace(cls.of(registry, role, name, rest), start="" if start == "random" else start)

    @property
    def weights(self) -> str:
        """A hub id, a folder, or ``random``: what a model's component starts from."""
        return str(self.start or getattr(self.config, "weights", "random"))

    def resolved(self) -> Part:
        """The same with what ``config.json`` decides of a checkpoint, or a whole model; errors say where it stands."""
        with located(self.where):
            return replace(self, config=resolved(self))

    def dump(self) -> dict[str, Any]:
        """As an experiment file says it, with every option."""
        start = {"weights": self.start} if self.start else {}
        return {"name": self.name, **self.config.model_dump(), **start}


class located:  # noqa: N801 - reads as a word: with located("projector"):
    """Errors raised within say where in the experiment they come from."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, HubError):
            raise error.at(self.where) from None
        if isinstance(error, NanoVLMError):
            error.args = (f"{self.where}: {error}",)  # the error itself goes on, whatever its class is built from


@dataclass(frozen=True)
class Blueprint:
    """What a model is made of."""

    vision_encoder: Part
    projector: Part
    language_decoder: Part

    @classmethod
    def of(cls, choices: Mapping[str, Named], registries: Registries, resolve: bool = True) -> Blueprint:
        """The parts of ``choices``, by role. All problems are reported at once, before anything is loaded."""
        parts: dict[str, Part] = {}
        with collected() as problems:
            for role in ROLES:
                with problems:
                    part = Part.of_model(registries.at(role), role, choices[role].name, choices[role].options)
                    parts[role] = part.resolved() if resolve else part
                    if resolve and isinstance(part.config, TextConfig):
                        with located(role):
                            read_template(part.config.template)
        return cls(**parts)

    @property
    def parts(self) -> tuple[Part, Part, Part]:
        return self.vision_encoder, self.projector, self.language_decoder

    def build_encoder(self) -> VisionEncoder:
        """Its pictures are resized as the decoder's ``image_format`` says."""
        with located("vision_encoder"):
            encoder: VisionEncoder = self.vision_encoder.cls(self.vision_encoder.config)
        if isinstance(text := self.language_decoder.config, TextConfig):
            encoder.image = FORMATS[text.image_format].resized(encoder.image)
        return encoder

    def build_decoder(self) -> LanguageDecoder:
        with located("language_decoder"):
            decoder: LanguageDecoder = self.language_decoder.cls(self.language_decoder.config)
            return decoder

    def build_projector(self, encoder: VisionEncoder, decoder: LanguageDecoder) -> Any:
        with located("projector"):
            projector = self.projector.cls(self.projector.config, grid=encoder.grid, text_dim=decoder.dim)
            if not isinstance(getattr(projector, "num_tokens", None), int):
                raise PluginError(
                    f"{self.projector.name} has no num_tokens: set self.num_tokens, the image tokens of a picture, in "
                    f"__init__; `nanovlm check {self.projector.name}` says what else a projector must do"
                )
            return projector


def choices_of(experiment: Experiment) -> dict[str, Named]:
    """Every component that an experiment names, by where it stands: ``projector``, ``data.train.0``."""
    lists: dict[str, Sequence[Named]] = {
        "data.train": experiment.data.train,
        "benchmarks": experiment.benchmarks,
        "trackers": experiment.trackers,
    }
    found: dict[str, Named] = {role: getattr(experiment, role) for role in ROLES}
    return found | {f"{path}.{i}": choice for path, choices in lists.items() for i, choice in enumerate(choices)}


class collected:  # noqa: N801
    """Collect the user's errors of several independent checks, and raise them together at the end.

    >>> with collected() as problems:
    ...     with problems:
    ...         check_one_thing()
    ...     with problems:
    ...         check_another()

    only: what is collected, and then raised. Anything else is raised at once.
    """

    def __init__(self, only: type[NanoVLMError] = NanoVLMError) -> None:
        self.only = only
        self.found: list[str] = []
        self.depth = 0

    def __enter__(self) -> collected:
        self.depth += 1
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.depth -= 1
        if self.depth:
            if isinstance(error, self.only):
                self.found.append(str(error))
            return isinstance(error, self.only)
        if error is None and self.found:
            kind = ConfigError if self.only is NanoVLMError else self.only
            raise kind(join(self.found))
        return False


@dataclass(frozen=True)
class Recipe:
    """An experiment whose names have all been understood: its model's blueprint, datasets, benchmarks and trackers."""

    experiment: Experiment
    registries: Registries
    blueprint: Blueprint
    datasets: tuple[Part, ...]
    benchmarks: tuple[Part, ...]
    trackers: tuple[Part, ...]

    @classmethod
    def of(cls, experiment: Experiment, registries: Registries, resolve: bool = True) -> Recipe:
        """Raises ConfigError with every problem found. What a run has recorded need not be ``resolve``d again."""

        choices = choices_of(experiment)

        def parts(path: str) -> tuple[Part, ...]:
            found = []
            for where, choice in choices.items():
                if where.startswith(f"{path}."):
                    with problems:
                        also = type(choice).model_fields
                        part = Part.of(registries.at(where), where, choice.name, choice.options, also)
                        found.append(part.resolved() if resolve else part)
            return tuple(found)

        with collected() as problems:
            blueprint = None
            with problems:
                blueprint = Blueprint.of(choices, registries, resolve)
            datasets, benchmarks, trackers = parts("data.train"), parts("benchmarks"), parts("trackers")
        assert blueprint
        return cls(experiment, registries, blueprint, datasets, benchmarks, trackers)

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.blueprint.parts + self.datasets + self.benchmarks + self.trackers

    def dump(self) -> dict[str, Any]:
        """The experiment with every option written out: a file that runs as it is."""
        content = self.experiment.model_dump()
        content |= {part.where: part.dump() for part in self.blueprint.parts}
        for place, parts in (
            (content["data"]["train"], self.datasets),
            (content["benchmarks"], self.benchmarks),
            (content["trackers"], self.trackers),
        ):
            for i, part in enumerate(parts):
                place[i] |= part.dump()
        return content


def open_dataset(part: Part, split: Split) -> Dataset:
    """Build a dataset; errors say where in the experiment it stands."""
    with located(part.where):
        dataset: Dataset = part.cls(part.config, split)
        empty = next(iter(dataset.stream()), None) is None if dataset.streaming else not len(dataset)
        if empty:
            raise DataError(
                f"{part.name} has no sample in its {split} split; `nanovlm list {part.name}` shows its options"
            )
        return dataset


def open_benchmark(part: Part) -> Benchmark:
    """Build a dataset that can be asked and scored."""
    if not issubclass(part.cls, Benchmark):
        raise DataError(f"{part.where}: {part.name} is for training only; a benchmark has prompt, answer and score")
    benchmark: Benchmark = open_dataset(part, "test")  # type: ignore[assignment]
    if benchmark.streaming:
        raise DataError(f"{part.where}: {part.name} is a stream, and a benchmark has a number of questions")
    return benchmark
