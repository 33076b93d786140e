"""A folder that was exported to transformers, read as the model that it was made from.

In its folder ``nanovlm/`` are our own config and tokenizer, and ``tensors.json``: what our tensors are called there.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from nanovlm.weights import check_tied, read_json, read_tensors

EXPORTED, NAMES = "nanovlm", "tensors.json"
EMBEDDING, HEAD = "model.text_model.embed_tokens.weight", "lm_head.weight"


def own_folder(folder: Path) -> Path:
    """The model folder that an export to transformers holds; any other folder is its own."""
    return folder / EXPORTED if (folder / EXPORTED / NAMES).is_file() else folder


def read_exported(folder: Path) -> dict[str, Tensor]:
    """The tensors of an export's own ``folder`` under our names, without the rows that transformers needs.

    What has no name of ours keeps its own, for ``load_weights`` to complain about.
    """
    names: dict[str, Any] = read_json(folder / NAMES)
    tensors = read_tensors(folder.parent)
    if HEAD in tensors and HEAD not in names["tensors"]:
        check_tied(HEAD, tensors.pop(HEAD), tensors.get(EMBEDDING), str(folder.parent))
    for name in {EMBEDDING, HEAD} & tensors.keys():
        tensors[name] = tensors[name][: names["vocab_size"]]
    return {names["tensors"].get(name, name): tensor for name, tensor in tensors.items()}
