"""Experiments: everything a YAML file may say, and how several of them become one.

``extends: other.yaml`` merges this file into another: mappings merge, lists replace, a new component ``name`` drops the
old component's options, and setting one budget removes the other. Overrides (``dotted.key=value``, list entries by
index) are merged last, by the same rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from nanovlm.components import Schema, parse
from nanovlm.errors import ConfigError
from nanovlm.yaml_reader import missing, parse_yaml, read_yaml

BUDGETS = ("steps", "samples", "epochs")

Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
LearningRate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Named(Schema):
    """A component by its registered name; whatever else stands beside it are the component's own options."""

    model_config = ConfigDict(extra="allow")
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class NamedDataset(Named):
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """How often an epoch passes over this dataset: 2 shows every sample twice, 0.5 half of them."""


class NamedBenchmark(Named):
    every: Natural = 0
    """Also evaluate after every so many steps; at the end of a run always."""
    limit: Natural = 0
    """Ask only the first so many questions; 0 asks all."""


def _spelled_out(value: Any) -> Any:
    """A component may be just its name."""
    return {"name": value} if isinstance(value, str) else value


def _choice(value: Any) -> Any:
    if not isinstance(value, str | dict | Named):
        raise ValueError(f"a component is its name, or a mapping with its name and options, not {value!r}")
    return _spelled_out(value)


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
    turns: Literal["first", "fit", "all"] = "fit"
    """Of a conversation: its first turn, the leading turns that fit into max_text_tokens, or all of them or nothing."""
    max_text_tokens: Positive = 1024
    """A sample's limit in text tokens; image tokens are not counted. A longer sample is skipped and counted."""
    max_images: Positive = 8
    """A sample's limit in pictures. A sample with more is skipped and counted."""
    workers: Literal["auto"] | Natural = "auto"
    """Processes that prepare data; `auto` is half of the processors, at most 8."""
    seed: int = 0
    """Decides splits and test items. The run's seed decides initial weights and sample order."""


class LearningRates(Schema):
    """Peak learning rates by component; 0 freezes it."""

    projector: LearningRate = 2e-3
    vision_encoder: LearningRate = 1e-4
    language_decoder: LearningRate = 1e-4


class Training(Schema):
    steps: Natural = 0
    """Budget in optimizer steps. Exactly one budget is set."""
    samples: Natural = 0
    """Budget in samples."""
    epochs: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Budget in passes over the training data."""
    samples_per_step: Positive = 256
    tokens_per_row: Positive = 8192
    """The most tokens that are laid end to end in one row; a step's samples fill as many rows as they need."""
    images_per_row: Positive = 256
    """The most pictures in one row."""
    learning_rate: LearningRates = LearningRates()
    warmup: Share = 0.03
    """The share of the steps over which the learning rate rises linearly from 0."""
    schedule: Literal["cosine", "warmup_stable_decay", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up: down a cosine, or constant and only in the end down a line."""
    decay: Share = 0.2
    """The share of the steps over which `warmup_stable_decay` falls in the end."""
    final_learning_rate: Share = 0.1
    """Where the learning rate ends, as a share of the peak; `constant` stays at the peak."""
    weight_decay: LearningRate = 0.01
    betas: Annotated[list[Decay], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """AdamW's moments."""
    max_grad_norm: LearningRate = 0.0
    """Clip the gradient to this norm; 0 does not clip."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """`auto` is bf16 where the hardware has it, fp16 with a gradient scaler on older GPUs, fp32 on CPU."""
    log_every: Positive = 1
    """Write metrics after every so many steps."""

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [key for key in BUDGETS if getattr(self, key)]
        if len(given) != 1:
            what = f"{' and '.join(given)} are set" if given else "none is set"
            raise ValueError(f"exactly one budget out of {', '.join(BUDGETS)} must be set; {what}")
        return self


class Experiment(Schema):
    name: str = "experiment"
    """What the run is called: by default the file's name."""
    seed: int = 0
    """Decides the initial weights and the order of samples."""
    vision_encoder: ComponentChoice
    projector: ComponentChoice
    language_decoder: ComponentChoice
    data: Data
    benchmarks: list[BenchmarkChoice] = []
    training: Training
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    trackers: list[ComponentChoice] = Field(default=[Named(name="console")])

    @field_validator("name")
    @classmethod
    def _one_folder(cls, name: str) -> str:
        if name in ("", ".", "..") or any(separator in name for separator in "/\\\0"):
            raise ValueError(f"a run's name is also its folder's: {name!r} cannot be one")
        return name


def load_experiment(file: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file with everything that it extends, and apply ``overrides`` (``dotted.key=value``).

    Raises ConfigError with the file and line, or the dotted path, the value and the likely fix.
    """
    file = Path(file)
    tree = _read(file, ())
    name = tree.pop("name", file.stem)  # the run's name, which is no component's: the merge rules must not see it
    pairs = [split_override(text) for text in overrides]
    _refuse_two_budgets([keys for keys, _ in pairs])
    for keys, value in _names_first(pairs):
        if keys == ["name"]:
            name = value
        else:
            tree = override(tree, keys, value)
    return parse(Experiment, {"name": name} | tree, where="", also=("extends",))


def _names_first(pairs: Iterable[tuple[list[str], Any]]) -> list[tuple[list[str], Any]]:
    """In the order given, but a component's name before its options: a new name drops the old one's."""
    ordered: list[tuple[list[str], Any]] = []
    for keys, value in pairs:
        place = len(ordered)
        if keys[-1] == "name" or isinstance(value, str):
            component = keys[:-1] if keys[-1] == "name" else keys
            options = (i for i, (other, _) in enumerate(ordered) if _is_option(other, component))
            place = next(options, place)
        ordered.insert(place, (keys, value))
    return ordered


def _is_option(keys: list[str], component: list[str]) -> bool:
    return len(keys) > len(component) > 0 and keys[: len(component)] == component and keys[-1] != "name"


def _read(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """One file, merged into what it extends."""
    if file.resolve() in above:
        circle = " -> ".join(path.name for path in (*above, file.resolve()))
        raise ConfigError(f"{file}: extends goes in a circle: {circle}")
    tree = read_yaml(file)
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{file}: extends={base!r} must be the path of one YAML file, relative to this one")
    if not (file.parent / base).exists():
        raise ConfigError(f"{file}: extends={base!r}, relative to this file: {missing(file.parent / base)}")
    below = _read(file.parent / base, (*above, file.resolve()))
    below.pop("name", None)  # a run is named after its own file
    merged: dict[str, Any] = merge(below, tree)
    return merged


def merge(base: Any, new: Any, above: str = "") -> Any:
    """``new`` over ``base``, both at ``above``: mappings merge, all else replaces (see the top of this file)."""
    if isinstance(base, str) and isinstance(new, dict) and "name" not in new:
        base = _spelled_out(base)  # options for a component that was given by its name alone
    elif isinstance(base, dict) and "name" in base and isinstance(new, str):
        new = _spelled_out(new)
    if not (isinstance(base, dict) and isinstance(new, dict)):
        return new
    if "name" in base and "name" in new and base["name"] != new["name"]:
        return new
    if above == "training." and any(key in new for key in BUDGETS):
        base = {key: value for key, value in base.items() if key not in BUDGETS}
    return base | {k: merge(base[k], value, f"{above}{k}.") if k in base else value for k, value in new.items()}


def override(tree: Any, keys: Sequence[str], value: Any, above: str = "") -> Any:
    """``tree``, which stands at ``above``, with ``value`` merged in at a dotted path; a list's entries go by index."""
    key, *rest = keys
    if isinstance(tree, list):
        i = _index(key, tree, above, rest)
        entry = override(tree[i], rest, value, f"{above}{key}.") if rest else merge(tree[i], value, f"{above}{key}.")
        return [*tree[:i], entry, *tree[i + 1 :]]
    below = _spelled_out(tree).get(key) if isinstance(tree, dict | str) else None
    if rest:
        if below is None:
            below = [] if rest[0].isdecimal() else {}
        value = override(below, rest, value, f"{above}{key}.")
    return merge(tree, {key: value}, above)


def _index(key: str, entries: list[Any], above: str, rest: Sequence[str]) -> int:
    if key.isdecimal() and int(key) < len(entries):
        return int(key)
    whole = ".".join((above + key, *rest))
    if not entries:
        raise ConfigError(f"override {whole}: the list has no entries; write the whole: {above[:-1]}=[...]")
    first = ".".join((above + "0", *([key] if not key.isdecimal() else []), *rest))
    which = f"it has entries 0 to {len(entries) - 1}, as in {first}=..."
    raise ConfigError(f"override {whole}: {key!r} is no entry of this list; {which}")


def split_override(text: str) -> tuple[list[str], Any]:
    path, equals, value = text.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override {text!r}: expected dotted.key=value, for example projector.factor=4")
    return keys, parse_yaml(value, f"override {text!r}")


def _refuse_two_budgets(paths: Iterable[list[str]]) -> None:
    budgets = sorted({keys[1] for keys in paths if keys[0] == "training" and len(keys) == 2 and keys[1] in BUDGETS})
    if len(budgets) > 1:
        raise ConfigError(
            f"overrides: exactly one budget out of {', '.join(BUDGETS)} must be set; {' and '.join(budgets)} are set"
        )
