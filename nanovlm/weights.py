"""Reading weights, strictly: every tensor a module owns must be there, in its shape, and no other."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nanovlm.adapters import is_adapter, plain_name
from nanovlm.components import Component
from nanovlm.errors import CheckpointError
from nanovlm.seeding import seeded

SHOWN = 8  # of a long list of tensors


def read_json(file: Path) -> dict[str, object]:
    """A JSON object; a CheckpointError says which file is missing or broken."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent} has no {file.name}: is it a model folder?") from None
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is not a JSON object")
    return content


def read_checkpoint_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's ``config.json``; a CheckpointError if what it describes cannot be trained."""
    config: dict[str, Any] = read_json(folder / "config.json")
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{folder} is quantized, which cannot be trained: name the checkpoint that it was made from"
        )
    return config


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """What a model folder says of its pictures' preprocessing; nothing where it does not."""
    for file in (folder / "preprocessor_config.json", folder / "processor_config.json"):
        if file.is_file():
            content: dict[str, Any] = read_json(file)
            return content.get("image_processor", content)  # of a processor of text and pictures
    return {}


def differing(config: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The keys of a checkpoint's config, with their values, that say something else than ``expected``, if anything."""
    return [
        f"{key}={config[key]!r}"
        for key, value in expected.items()
        if config.get(key) is not None and config[key] != value
    ]


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's ``model.safetensors``, whole or in shards (never a pickle)."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise CheckpointError(f"{index} has no weight_map, which says what tensor is in which file")
        files = [folder / Path(str(name)).name for name in sorted(set(shards.values()))]  # never outside of the folder
    else:
        files = [folder / "model.safetensors"]
    tensors: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{folder} has no {file.name}; weights are read from safetensors files only")
        try:
            tensors |= load_file(file)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is not a whole safetensors file ({error})") from None
    return tensors


def load_weights(
    module: nn.Module,
    tensors: dict[str, Tensor],
    source: str,
    rename: Callable[[str], str] = str,
    ignored: Iterable[str] = (),
    adapted: bool = False,
) -> None:
    """Copy ``tensors`` into ``module``, under the names that ``rename`` gives.

    ``ignored`` are the prefixes (before renaming) of tensors that are knowingly left out. With ``adapted`` the module's
    adapters (LoRA) are read, too: a saved model has them, a pretrained checkpoint knows nothing of them. A
    CheckpointError lists what is missing, unexpected or misshapen.
    """
    ignored = tuple(ignored)
    state = {rename(name): tensor for name, tensor in tensors.items() if not name.startswith(ignored)}
    own = {name: tensor for name, tensor in tied_once(module).items() if adapted or not is_adapter(name)}
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    misshapen = [
        f"{name} {tuple(state[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if own[name].shape != state[name].shape
    ]
    findings = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
    if any(names for _, names in findings):
        lines = "".join(_listed(what, names) for what, names in findings if names)
        raise CheckpointError(f"{source} does not fit {type(module).__name__}:{lines}")
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    for part in module.modules():
        if isinstance(part, Component):
            part.weights_loaded()


def translated(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under the names that the model has in the installed version of transformers.

    model: one of transformers. Versions name (and join) tensors differently, and only the library knows how; what it
    would leave out or fill with random numbers keeps its place here, for ``load_weights`` to complain about.
    """
    with quiet(), seeded("translated"):
        copy, report = type(model).from_pretrained(
            None, config=model.config, state_dict=dict(tensors), dtype=torch.float32,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    found = {name: tensor for name, tensor in copy.state_dict().items() if name not in report["missing_keys"]}
    found |= {name: torch.empty(shape, device="meta") for name, shape, _ in report["mismatched_keys"]}
    prefix = f"{model.base_model_prefix}."
    return found | {name.removeprefix(prefix): torch.empty(0) for name in report["unexpected_keys"]}


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block transformers draws no progress bars, and leaves reporting to ``load_weights``."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def tied_once(module: nn.Module) -> dict[str, Tensor]:
    """A module's state by name, each tensor under its first name only (a tied head is the embedding again).

    An adapted layer's weight keeps the name that it has without an adapter.
    """
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            own[plain_name(name)] = tensor
    return own


def repeated(module: nn.Module) -> dict[str, str]:
    """The names under which a module's state holds a tensor once more (a tied head), each with that tensor's first."""
    first = {id(tensor): name for name, tensor in tied_once(module).items()}
    state = {plain_name(name): first[id(tensor)] for name, tensor in module.state_dict(keep_vars=True).items()}
    return {name: own for name, own in state.items() if name != own}


def check_tied(name: str, head: Tensor, embedding: Tensor | None, source: str) -> None:
    """Some checkpoints with a tied head hold it too, as ``name``: CheckpointError unless it is the embedding again."""
    if embedding is not None and (embedding.is_meta or head.is_meta):
        return  # misshapen (see ``translated``), as ``load_weights`` will say
    if embedding is None or not embedding.equal(head):
        raise CheckpointError(
            f"{source}: {name} is not the embedding again, though config.json says tie_word_embeddings: "
            "set it to false there if the head is a trained one"
        )


def _listed(what: str, names: list[str]) -> str:
    rest = f"\n    and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"\n  {what} ({len(names)}):" + "".join(f"\n    {name}" for name in names[:SHOWN]) + rest
