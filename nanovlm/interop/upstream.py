"""Checkpoints of nanoVLM (Hugging Face, 2025, github.com/huggingface/nanoVLM), read as components of ours.

Two formats are known: that of v0.1 (``lusxvr/nanoVLM-222M``), whose picture stands before the text, and the current
one, whose pictures stand in the user's message, each behind a marker. Pixels are in [0, 1] in both.

Not done: the current format cuts a large picture into tiles, with a small view of the whole before them, of which each
has its own image tokens. Here a picture is resized into one tile, as it does with small pictures.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from nanovlm.data.image_format import FORMATS
from nanovlm.errors import CheckpointError
from nanovlm.experiment import Named

# Our components and their options, and what nanoVLM calls these.
COMPONENTS = {"vision_encoder": "siglip", "projector": "pixel_shuffle", "language_decoder": "smollm2"}
IMAGE_FORMAT = "nanovlm"
ENCODER = {
    "image_size": "vit_img_size", "patch_size": "vit_patch_size", "hidden_size": "vit_hidden_dim",
    "intermediate_size": "vit_inter_dim", "num_hidden_layers": "vit_n_blocks", "num_attention_heads": "vit_n_heads",
    "layer_norm_eps": "vit_ln_eps",
}  # fmt: skip
PROJECTOR = {"factor": "mp_pixel_shuffle_factor"}
DECODER = {
    "vocab_size": "lm_vocab_size", "hidden_size": "lm_hidden_dim", "intermediate_size": "lm_inter_dim",
    "num_hidden_layers": "lm_n_blocks", "num_attention_heads": "lm_n_heads", "num_key_value_heads": "lm_n_kv_heads",
    "max_position_embeddings": "lm_max_position_embeddings", "rope_theta": "lm_re_base", "rms_norm_eps": "lm_rms_eps",
    "tie_word_embeddings": "lm_tie_weights",
}  # fmt: skip

# What a config may say of these, if anything: our components have nothing that does otherwise.
REPRESENTED = {
    "vit_cls_flag": False, "vit_dropout": 0.0, "lm_dropout": 0.0, "lm_attn_scaling": 1.0, "lm_use_tokens": False,
}  # fmt: skip
TEXT = ("lm_tokenizer", "lm_chat_template", "vlm_extra_tokens", "extra_token_amount", "mp_image_token_length")
ORIGIN = ("vit_model_type", "lm_model_type", "vlm_load_backbone_weights")
UNUSED = {
    "lm_max_length": "the limit of a training sample, which is the experiment's",
    "lm_eos_token_id": "the tokenizer says it",
    "lm_base_vocab_size": "lm_vocab_size without the extra tokens",
    "max_img_size": "of the tiles, see above",
    "resize_to_max_side_len": "of the tiles, see above",
    "vlm_checkpoint_path": "where it was trained",
    "hf_repo_name": "where it was uploaded",
}
KNOWN = {*ENCODER.values(), *PROJECTOR.values(), *DECODER.values(), *REPRESENTED, *TEXT, *ORIGIN, *UNUSED}


def is_upstream(config: dict[str, Any]) -> bool:
    """Whether this ``config.json`` is nanoVLM's: flat, every key with its component's prefix."""
    return all(any(key.startswith(prefix) for key in config) for prefix in ("vit_", "lm_", "mp_"))


def components(config: dict[str, Any], source: str) -> dict[str, Named]:
    """Our components by role; a CheckpointError lists what is missing, or what they cannot represent."""
    needed = [*ENCODER.values(), *PROJECTOR.values(), *DECODER.values(), "lm_tokenizer"]
    if missing := [key for key in needed if key not in config]:
        raise CheckpointError(f"{source}/config.json is nanoVLM's, but has no {', '.join(missing)}")
    refused = [f"{key}={config[key]!r}" for key, value in REPRESENTED.items() if config.get(key, value) != value]
    refused += [f"{key}={config[key]!r} (unknown here)" for key in sorted(config.keys() - KNOWN)]
    if refused:
        raise CheckpointError(f"{source}: our components cannot represent this nanoVLM's {', '.join(refused)}")
    check_image_tokens(config, source)
    text = current_text(config, source) if "vlm_extra_tokens" in config else {"template": "question_answer"}
    resample = "bicubic" if "vlm_extra_tokens" in config else "bilinear"  # torchvision's Resize, with its own default
    options: dict[str, dict[str, Any]] = {
        "vision_encoder": options_in(ENCODER, config)
        | {"weights": origin("vit_model_type", config), "resample": resample, "image_mean": 0.0, "image_std": 1.0},
        "projector": options_in(PROJECTOR, config),
        "language_decoder": options_in(DECODER, config)
        | {"weights": origin("lm_model_type", config), "tokenizer": config["lm_tokenizer"]}
        | text,
    }
    return {role: Named.model_validate({"name": COMPONENTS[role], **options[role]}) for role in COMPONENTS}


def options_in(names: dict[str, str], config: dict[str, Any]) -> dict[str, Any]:
    return {ours: config[theirs] for ours, theirs in names.items()}


def origin(key: str, config: dict[str, Any]) -> str:
    """The hub id that a component's training began with."""
    return str(config.get(key) or "random") if config.get("vlm_load_backbone_weights", True) else "random"


def check_image_tokens(config: dict[str, Any], source: str) -> None:
    """The three sizes decide the number of image tokens; what is no size is for the components to refuse."""
    keys = ("vit_img_size", "vit_patch_size", "mp_pixel_shuffle_factor")
    sizes = [config[key] for key in keys]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return
    count = (sizes[0] // sizes[1] // sizes[2]) ** 2
    if (stated := config.get("mp_image_token_length", count)) != count:
        made_by = ", ".join(f"{key}={size}" for key, size in zip(keys, sizes, strict=True))
        raise CheckpointError(f"{source}: mp_image_token_length={stated}, but {made_by} make {count}")


def current_text(config: dict[str, Any], source: str) -> dict[str, Any]:
    """The decoder's options for the current format. Its extra tokens have the last ids, in their order."""
    extra, count = config["vlm_extra_tokens"], config.get("extra_token_amount")
    tokens = list(extra.values())[:count] if isinstance(extra, dict) else []
    lacks = [] if config.get("lm_chat_template") else ["lm_chat_template"]
    lacks += [f"{marker} among them" for marker in FORMATS[IMAGE_FORMAT].markers if marker not in tokens]
    if lacks:
        raise CheckpointError(
            f"{source}: config.json has vlm_extra_tokens, but no {' and no '.join(lacks)}: of nanoVLM's formats only "
            "v0.1's and the current one are known here, not those in between"
        )
    return {"template": config["lm_chat_template"], "image_format": IMAGE_FORMAT, "extra_tokens": tokens}


# In this order, on the names of the checkpoint's tensors.
RENAMED = (
    ("MP.proj.", "projector.linear."),
    ("decoder.", "language_decoder."),
    ("token_embedding", "embedding"),
    ("patch_embedding.conv.", "patch_embedding."),
    ("patch_embedding.position_embedding", "position_embedding"),
    ("layer_norm.", "norm."),
    (".ln", ".norm"),
    (".attn.", ".attention."),
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("out_proj", "output"),
    ("mlp.fc1", "mlp.0"),
    ("mlp.fc2", "mlp.2"),
    ("_proj", ""),
)
JOINED = re.compile(r"(vision_encoder\.blocks\.\d+\.attn\.)qkv_proj\.(weight|bias)")
FREQUENCIES = "decoder.rotary_embd.inv_freq"  # follow from lm_re_base
HEAD, EMBEDDING = "decoder.head.weight", "decoder.token_embedding.weight"
POSITIONS = "vision_encoder.patch_embedding.position_embedding"


def translated(tensors: dict[str, Tensor], config: dict[str, Any], source: str) -> dict[str, Tensor]:
    """A checkpoint's tensors under our names; what has no counterpart keeps its name, for ``load_weights`` to list."""
    tensors = {name: tensor for name, tensor in tensors.items() if name != FREQUENCIES}
    if config["lm_tie_weights"] and HEAD in tensors:  # the file holds the tied one under its head's name
        head = tensors.pop(HEAD)
        if not tensors.setdefault(EMBEDDING, head).equal(head):
            raise CheckpointError(
                f"{source}: {HEAD} is not the embedding again, though config.json says lm_tie_weights: "
                "set it to false there if the head is a trained one"
            )
    ours: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if joined := JOINED.fullmatch(name):
            parts = zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=False)
            ours |= {rename(f"{joined[1]}{part}.{joined[2]}"): own for part, own in parts}
        elif name == POSITIONS and tensor.dim() == 3 and len(tensor) == 1:
            ours[rename(name)] = tensor[0]  # (1, N, C) -> (N, C)
        else:
            ours[rename(name)] = tensor
    return ours


def rename(name: str) -> str:
    for old, new in RENAMED:
        name = name.replace(old, new)
    return name


def caution(config: dict[str, Any], source: str) -> str:
    """What of a checkpoint's use is done otherwise here, in words; empty where nothing is."""
    size = config["vit_img_size"]
    if "vlm_extra_tokens" not in config or config.get("max_img_size") == size:
        return ""
    return (
        f"{source}: nanoVLM cuts a picture into tiles of {size} x {size} pixels, and here it is resized into one: "
        "small details are lost, and the answers differ from nanoVLM's own"
    )
