"""The tables of a model card: what a model is made of, how it was trained, and on what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from nanovlm.blueprint import ROLES
from nanovlm.data.origins import dataset_of
from nanovlm.errors import CheckpointError
from nanovlm.lab.report.tables import UNKNOWN, Cell, Table, duration, gibibytes, table
from nanovlm.lab.verdict import percent
from nanovlm.merging import BUDGETS
from nanovlm.training.clock import per_second

PLACE = ".../"  # stands for where on a machine a file or folder was


def without_places(value: Any) -> Any:
    """A tree of settings in which a path of some machine is said by its last name alone."""
    if isinstance(value, Mapping):
        return {key: without_places(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_places(entry) for entry in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        return PLACE + Path(value).name
    return value


def sizes(folder: Path) -> dict[str, tuple[int, str]]:
    """By role: how many parameters a model folder's weights have, and of which type; only headers are read."""
    counts: Counter[str] = Counter()
    types: dict[str, Counter[str]] = {role: Counter() for role in ROLES}
    for name, shape, dtype in _tensors(folder):
        role = name.partition(".")[0]
        if role in ROLES and dtype.startswith(("F", "BF")):  # whole numbers are no parameters
            count = 1
            for length in shape:
                count *= length
            counts[role] += count
            types[role][dtype] += count
    return {role: (counts[role], " and ".join(sorted(types[role]))) for role in ROLES}


def _tensors(folder: Path) -> Iterator[tuple[str, list[int], str]]:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} has no model.safetensors; weights are read from safetensors files only")
    for file in files:
        try:
            with safe_open(file, "pt") as content:
                for name in content.keys():  # noqa: SIM118 - it is no mapping
                    tensor = content.get_slice(name)
                    yield name, tensor.get_shape(), tensor.get_dtype()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is not a whole safetensors file ({error})") from None


def components_table(parts: Mapping[str, Mapping[str, Any]], folder: Path) -> Table:
    """parts: by role, with their options."""
    found = sizes(folder)
    return table(
        "What the model is made of",
        [
            ("part", [Cell(role.replace("_", " ")) for role in ROLES]),
            ("component", [Cell(str(parts[role]["name"])) for role in ROLES]),
            ("began from", [Cell(_start(parts[role])) for role in ROLES]),
            ("parameters", [Cell(f"{found[role][0]:,}", order=found[role][0]) for role in ROLES]),
            ("stored as", [Cell(found[role][1]) for role in ROLES]),
        ],
    )


def _start(part: Mapping[str, Any]) -> str:
    weights = str(part.get("weights", "random"))
    lora = part.get("lora")
    start = "random weights" if weights == "random" else weights
    return f"{start}, with LoRA of rank {lora['rank']}" if isinstance(lora, Mapping) else start


def facts(caption: str, rows: Mapping[str, str | None], note: str = "") -> Table:
    """Two columns, without the rows of which nothing is known."""
    kept = {key: value for key, value in rows.items() if value}
    columns = ("what", list(map(Cell, kept))), ("value", [Cell(str(value)) for value in kept.values()])
    return table(caption, columns, note)


def training_table(experiment: Mapping[str, Any], summary: Mapping[str, Any], provenance: Mapping[str, Any]) -> Table:
    """summary, provenance: what they do not say, the table does not either."""
    training = experiment["training"]
    work = summary.get("work", {})
    processes = summary.get("ranks", 1)
    where = provenance.get("hardware", {}).get("label", "")

    def known(key: str, words: str, of: Mapping[str, Any] = summary) -> str | None:
        return None if of.get(key) is None else words.format(of[key])

    return facts(
        "How it was trained",
        {
            "budget": ", ".join(f"{training[key]:,g} {key}" for key in BUDGETS if training.get(key)),
            "optimizer steps": known("steps", "{:,}"),
            "samples a step": f"{training['samples_per_step']:,}",
            "samples seen": known("samples", "{:,}"),
            "tokens seen": known("tokens", "{:,}, those of pictures included"),
            "targets": known("targets", "{:,}", work),
            "learning rate, at its peak": ", ".join(map(_rate(experiment), ROLES)),
            "schedule": f"{training['schedule']}, warm-up over {percent(training['warmup'])} of the steps",
            "AdamW": f"betas {training['betas']}, weight decay {_by_role(training['weight_decay'])}",
            "gradient norm clipped to": f"{training['max_grad_norm']:g}" if training["max_grad_norm"] else None,
            "precision": known("precision", "{}"),
            "hardware": f"{where}, {processes} processes" if where and processes > 1 else where,
            "wall time": _measured(summary, "wall_seconds", duration, ", evaluations included"),
            "samples a second": _measured(summary, "samples_per_second", per_second),
            "peak memory": _measured(summary, "peak_memory_bytes", gibibytes),
            "updates lost to overflow": known("lost_updates", "{:,}") if summary.get("lost_updates") else None,
            "seed": str(experiment["seed"]),
        },
    )


def _measured(summary: Mapping[str, Any], key: str, words: Any, behind: str = "") -> str | None:
    return None if summary.get(key) is None else f"{words(summary[key])}{behind}"


def _rate(experiment: Mapping[str, Any]) -> Any:
    training = experiment["training"]

    def words(role: str) -> str:
        rate, until = training["learning_rate"][role], training["frozen_until_step"][role]
        later = f", frozen up to step {until:,}" if rate and until else ""
        return f"{role} {f'{rate:g}' if rate else 'frozen'}{later}"

    return words


def _by_role(numbers: Mapping[str, float]) -> str:
    if len(set(numbers.values())) == 1:
        return f"{next(iter(numbers.values())):g}"
    return ", ".join(f"{role} {number:g}" for role, number in numbers.items())


def datasets_table(experiment: Mapping[str, Any], given: Mapping[str, int] | None) -> Table:
    """given: how many samples of each dataset (or subset) the run used; None where that is not known."""
    used: Counter[str] = Counter()
    for place, count in (given or {}).items():
        used[dataset_of(place)] += count
    chosen = experiment["data"]["train"]

    def seen(number: int) -> Cell:
        count = used[f"data.train.{number}"]
        return Cell(UNKNOWN) if given is None else Cell(f"{count:,}", order=count)

    return table(
        "Trained on",
        [
            ("dataset", [Cell(str(dataset["name"])) for dataset in chosen]),
            ("source", [Cell(str(dataset.get("source", ""))) for dataset in chosen]),
            ("weight", [Cell(f"{dataset['weight']:g}", order=dataset["weight"]) for dataset in chosen]),
            ("samples seen", [seen(i) for i in range(len(chosen))]),
        ],
    )
