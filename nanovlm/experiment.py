"""Experiments: everything a YAML file may say, and how several of them become one.

``extends: other.yaml`` merges this file into another, which may also be one that comes with nanovlm, by its name:
mappings merge, lists replace, a new component ``name`` drops the old component's options, and setting one budget
removes the other. Overrides (``dotted.key=value``, list entries by index) are merged last, by the same rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ModelWrapValidatorHandler, model_validator

from nanovlm.components import Schema, parse
from nanovlm.errors import ConfigError
from nanovlm.merging import ABLATE, BUDGETS, spelled_out
from nanovlm.places import Written, joined
from nanovlm.reading import read_experiment as read_experiment
from nanovlm.unread import check_read

Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Magnitude = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Named(Schema):
    """A component by its registered name; whatever else stands beside it are the component's own options."""

    model_config = ConfigDict(extra="allow")
    name: str
    """As `nanovlm list` shows it; `origin:name` where several plugins claim it."""

    @model_validator(mode="wrap")
    @classmethod
    def _remember_places(cls, value: Any, validated: ModelWrapValidatorHandler[Self]) -> Self:
        """Errors in the options are found later, by the component, and shall say where they were written."""
        choice = validated(value)
        if isinstance(value, Written) and value is not choice:
            object.__setattr__(choice, "__pydantic_extra__", Written(choice.model_extra, value.places))
        return choice

    @property
    def options(self) -> dict[str, Any]:
        return joined(self.model_extra or {}, {})


class NamedDataset(Named):
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """How often an epoch passes over this dataset: 2 shows every sample twice, 0.5 half of them."""


class NamedBenchmark(Named):
    every: Natural = 0
    """Also evaluate after every so many steps; at the end of a run always."""
    limit: Natural = 0
    """Ask only the first so many questions; 0 asks all."""


def _choice(value: Any) -> Any:
    if not isinstance(value, str | dict | Named):
        raise ValueError(f"a component is its name, or a mapping with its name and options, not {value!r}")
    return spelled_out(value)


ComponentChoice = Annotated[Named, BeforeValidator(_choice)]
DatasetChoice = Annotated[NamedDataset, BeforeValidator(_choice)]
BenchmarkChoice = Annotated[NamedBenchmark, BeforeValidator(_choice)]


class Validation(Schema):
    share: Share = 0.01
    """The share of the training samples that is held out, chosen by a hash of the sample's id."""
    every: Natural = 0
    """Validate after every so many steps; at the end of a run always (if anything is held out)."""
    limit: Natural = 1000
    """Use at most so many of the held-out samples; 0 uses all."""


class Data(Schema):
    train: Annotated[list[DatasetChoice], Field(min_length=1)]
    """The datasets to train on."""
    validation: Validation = Validation()
    """What is held out of the training data, to choose the best model by, and how often it is looked at."""
    turns: Literal["first", "fit", "all"] = "fit"
    """Of a conversation: its first turn, the leading turns that fit into max_text_tokens, or all of them or nothing."""
    max_text_tokens: Positive = 1024
    """A sample's limit in text tokens: markers count, image tokens do not. A longer sample is skipped and counted."""
    max_images: Positive = 8
    """A sample's limit in pictures. A sample with more is skipped and counted."""
    workers: Literal["auto"] | Natural = "auto"
    """Processes that prepare data; `auto` is half of the processors, at most 8."""
    seed: int = 0
    """Decides splits and test items. The run's seed decides initial weights and sample order."""

    def longest_sample(self, num_image_tokens: int) -> int:
        """The most tokens that a sample may take, with M image tokens a picture."""
        return self.max_text_tokens + self.max_images * num_image_tokens


def _for_each_component(value: Any) -> Any:
    """One number stands for all three."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return dict.fromkeys(LearningRates.model_fields, value) if is_number else value


class LearningRates(Schema):
    projector: Magnitude = 2e-3
    """The projector's peak; 0 freezes it."""
    vision_encoder: Magnitude = 1e-4
    """The encoder's peak; 0 freezes it."""
    language_decoder: Magnitude = 1e-4
    """The decoder's peak, with LoRA its adapters'; 0 freezes it."""


class WeightDecays(Schema):
    projector: Magnitude = 0.01
    """The projector's."""
    vision_encoder: Magnitude = 0.01
    """The encoder's."""
    language_decoder: Magnitude = 0.01
    """The decoder's."""


class FrozenUntil(Schema):
    projector: Natural = 0
    """Train the projector after so many steps."""
    vision_encoder: Natural = 0
    """Train the encoder after so many steps."""
    language_decoder: Natural = 0
    """Train the decoder after so many steps."""


class Training(Schema):
    steps: Natural = 0
    """Budget in optimizer steps. Exactly one budget is set."""
    samples: Natural = 0
    """Budget in samples."""
    epochs: Magnitude = 0.0
    """Budget in passes over the training data."""
    flops: Magnitude = 0.0
    """Budget in floating point operations, forward and backward, judged by the run's first samples."""
    samples_per_step: Positive = 256
    """The batch: how many samples one update is made of, over all rows and all processes."""
    tokens_per_row: Positive = 8192
    """The most tokens that are laid end to end in one row; a step's samples fill as many rows as they need."""
    images_per_row: Positive = 256
    """The most pictures in one row."""
    learning_rate: Annotated[LearningRates, BeforeValidator(_for_each_component)] = LearningRates()
    """The peak, by component or one for all; 0 freezes a component."""
    frozen_until_step: FrozenUntil = FrozenUntil()
    """By component: it is frozen up to this step, and trained from there on."""
    warmup: Share = 0.03
    """The share of the steps over which the learning rate rises linearly from 0."""
    schedule: Literal["cosine", "warmup_stable_decay", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up: down a cosine, or constant and only in the end down a line."""
    decay: Share = 0.2
    """The share of the steps over which `warmup_stable_decay` falls in the end."""
    final_learning_rate: Share = 0.1
    """Where the learning rate ends, as a share of the peak; `constant` stays at the peak."""
    weight_decay: Annotated[WeightDecays, BeforeValidator(_for_each_component)] = WeightDecays()
    """AdamW's, by component or one for all."""
    betas: Annotated[list[Decay], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """AdamW's moments."""
    max_grad_norm: Magnitude = 0.0
    """Clip the gradient to this norm; 0 does not clip."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """`auto` is bf16 where the hardware has it, fp16 with a gradient scaler on older GPUs, fp32 on CPU."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the components' blocks for training; `auto` does so on CUDA."""
    gradient_checkpointing: bool = False
    """Keep of each block its input only, and compute it again in the backward pass: a third more work, less memory."""
    log_every: Positive = 1
    """Write metrics after every so many steps."""
    rank_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    """Of several processes, one that is waited for longer than so many seconds ends the run, and is named."""

    @property
    def trained_roles(self) -> list[str]:
        return [role for role, rate in self.learning_rate if rate > 0]

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [key for key in BUDGETS if getattr(self, key)]
        if len(given) != 1:
            what = f"{' and '.join(given)} are set" if given else "none is set"
            raise ValueError(f"exactly one budget out of {', '.join(BUDGETS)} must be set; {what}")
        return self


class Checkpointing(Schema):
    every: Natural = 500
    """Write a checkpoint after every so many steps, and at the end. With 0 only an interrupted run writes one."""
    keep_last: Positive = 2
    """Keep so many of them. The best model is kept by itself, as `model-best`."""


def _one_folder(name: str) -> str:
    if name in ("", ".", "..") or any(separator in name for separator in "/\\\0"):
        raise ValueError(f"a run's name is also its folder's: {name!r} cannot be one")
    return name


RunName = Annotated[str, AfterValidator(_one_folder)]


class Experiment(Schema):
    name: RunName = "experiment"
    """What the run is called: by default the file's name."""
    seed: int = 0
    """Decides the initial weights and the order of samples."""
    vision_encoder: ComponentChoice
    """Turns pictures into patches: its name, or a mapping of its name and its options."""
    projector: ComponentChoice
    """Turns patches into image tokens: its name, or a mapping of its name and its options."""
    language_decoder: ComponentChoice
    """Reads image tokens and text, and writes: its name, or a mapping of its name and its options."""
    data: Data
    """What the model is trained on, and how conversations become samples."""
    benchmarks: list[BenchmarkChoice] = []
    """Datasets whose questions the model is asked at the end of the run, and in between."""
    training: Training
    """For how long and how the model is trained: budget, batch, learning rates."""
    checkpoints: Checkpointing = Checkpointing()
    """When the run's state is kept, to go on from."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """Where it is trained; `auto` is CUDA, then Apple's MPS, then the CPU."""
    trackers: list[ComponentChoice] = Field(default=[Named(name="console")])
    """Who is told of the run's progress. `metrics.jsonl` is always written."""


def load_experiment(file: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file with everything that it extends, and apply ``overrides`` (``dotted.key=value``).

    Raises ConfigError with the file and line, or the dotted path, the value and the likely fix.
    """
    return check_experiment(read_experiment(file, overrides), file)


def check_experiment(tree: dict[str, Any], file: str | Path) -> Experiment:
    """What ``read_experiment`` gave of a ``file``, if it asks for one run, and for nothing that would not be read."""
    if ABLATE in tree:
        raise ConfigError(f"{file}: it asks for several runs (`{ABLATE}:`); start them by `nanovlm ablate {file}`")
    experiment = parse_experiment(tree)
    check_read(tree, experiment)
    return experiment


def parse_experiment(tree: dict[str, Any]) -> Experiment:
    """What ``read_experiment`` gave, validated."""
    return parse(Experiment, tree, where="", also=("extends", ABLATE))
