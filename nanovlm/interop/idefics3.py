"""Our model as transformers' ``Idefics3ForConditionalGeneration``: the same tensors under other names.

Source: Laurençon et al. 2024, arXiv 2408.12637 (Idefics3): SigLIP, pixel shuffle, and a decoder of the Llama
architecture. There a picture's places are held by the id of a token ``<image>``, and ours reserve none: the tokens that
Idefics3 needs are added behind those of the tokenizer, with rows of the embedding behind ours where it has none to
spare. They are the mean of the other rows, and ``generation_config.json`` forbids to say them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nanovlm.blueprint import ROLES, collected, located
from nanovlm.errors import CheckpointError, ConfigError
from nanovlm.interop.exported import EMBEDDING, HEAD
from nanovlm.interop.parts import Exportable, TransformersPart
from nanovlm.plugins import Registries
from nanovlm.weights import tied_once

if TYPE_CHECKING:
    from nanovlm.model import VisionLanguageModel

PREFIXES = {  # of the tensors of each part
    "model.vision_model.": "vision_encoder",
    "model.connector.": "projector",
    "model.text_model.": "language_decoder",
    "lm_head.": "language_decoder",
}


def parts_of(model: VisionLanguageModel, registries: Registries) -> dict[str, TransformersPart]:
    """What each component is in transformers, by role. ConfigError names those that it cannot express, all at once."""
    parts: dict[str, TransformersPart] = {}
    with collected() as problems:
        for role in ROLES:
            component, name = getattr(model, role), getattr(model.blueprint, role).name
            with problems:
                if not isinstance(component, Exportable):
                    known = [entry.name for entry in getattr(registries, f"{role}s") if _is_exportable(entry.cls)]
                    raise ConfigError(
                        f"{role} {name} cannot be expressed in transformers' Idefics3; what can is "
                        f"{', '.join(sorted(known)) or 'none'} (a component tells how by a method to_transformers).\n"
                        "  nanovlm export --to folder keeps every component"
                    )
                with located(role):
                    parts[role] = component.to_transformers()
        with problems:
            check_positions(model.vision_encoder.grid.height)
    return parts


def _is_exportable(cls: type) -> bool:
    return hasattr(cls, "to_transformers")


@torch.no_grad()
def check_positions(side: int) -> None:
    """ConfigError for a grid of ``side`` x ``side`` patches that Idefics3 gives other positions than their own.

    It finds them by rounding fractions, and the installed version is asked. (In transformers 5.24, 25 x 25 is one.)
    """
    from transformers import Idefics3VisionConfig
    from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings

    sizes: dict[str, Any] = {"hidden_size": 1, "num_channels": 1, "image_size": side, "patch_size": 1}
    embeddings = Idefics3VisionEmbeddings(Idefics3VisionConfig(**sizes))
    for parameter in embeddings.patch_embedding.parameters():
        nn.init.zeros_(parameter)
    own = torch.arange(float(side**2))[:, None]
    embeddings.position_embedding.weight.copy_(own)
    found = embeddings(torch.zeros(1, 1, side, side), torch.ones(1, side, side, dtype=torch.bool))
    if not found[0].equal(own):
        raise ConfigError(
            f"vision_encoder: of a {side} x {side} patch grid, transformers' Idefics3 gives "
            f"{int((found[0] != own).sum())} patches the position of another one (it rounds fractions); "
            "choose an image_size of another grid, 14 x 14, 16 x 16, 24 x 24 or 32 x 32 for example"
        )


def to_idefics3(model: VisionLanguageModel, parts: dict[str, TransformersPart], tokenizer: Any, image_id: int) -> Any:
    """An ``Idefics3ForConditionalGeneration`` with the model's weights, as many rows as the ``tokenizer`` has ids."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    text = parts["language_decoder"].config
    vocab_size = max(text["vocab_size"], len(tokenizer))
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    options: dict[str, Any] = {
        "vision_config": parts["vision_encoder"].config,
        "text_config": text | ids | {"vocab_size": vocab_size},
        "image_token_id": image_id,
        "pad_token_id": ids["pad_token_id"],
        "tie_word_embeddings": text["tie_word_embeddings"],
        **parts["projector"].config,
    }
    config = Idefics3Config(**options)
    with torch.device("meta"):
        exported = Idefics3ForConditionalGeneration(config)
    own = {role: tied_once(getattr(model, role)) for role in ROLES}
    state: dict[str, Tensor] = {}
    for name in exported.state_dict():
        role, own_name = own_names(name, parts)
        source = EMBEDDING if name == HEAD and text["tie_word_embeddings"] else name
        state[name] = state[source] if source != name else own[role].pop(own_name).detach()
        if source == name in (EMBEDDING, HEAD):
            state[name] = _with_rows(state[name], vocab_size)
    if left := [f"{role}.{name}" for role, tensors in own.items() for name in tensors]:
        raise ConfigError(f"transformers' Idefics3 has no place for {', '.join(left)}")
    exported.load_state_dict(state, assign=True)
    exported.tie_weights()
    return exported.eval()


def own_names(name: str, parts: dict[str, TransformersPart]) -> tuple[str, str]:
    """A tensor of Idefics3 in our model: its component's role and its name there. CheckpointError where it has none."""
    for prefix, role in PREFIXES.items():
        if name.startswith(prefix):
            return role, parts[role].rename(name if name == HEAD else name.removeprefix(prefix))
    raise CheckpointError(f"{name} is no tensor of an Idefics3 with a decoder and its head")


def _with_rows(tensor: Tensor, rows: int) -> Tensor:
    """A tensor (V, D) with rows behind it that are the mean of its own."""
    if len(tensor) == rows:
        return tensor
    return torch.cat((tensor, tensor.float().mean(dim=0, keepdim=True).to(tensor).expand(rows - len(tensor), -1)))


def names_of(exported: Any, parts: dict[str, TransformersPart]) -> dict[str, Any]:
    """What ``read_exported`` needs: our names of the tensors, and how many rows of the embedding are ours."""
    text = parts["language_decoder"].config
    theirs = [name for name in exported.state_dict() if name != HEAD or not text["tie_word_embeddings"]]
    return {
        "vocab_size": text["vocab_size"],
        "tensors": {name: ".".join(own_names(name, parts)) for name in theirs},
    }
