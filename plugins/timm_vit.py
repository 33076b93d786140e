"""Any vision transformer of the timm library as a vision encoder: ViT, DeiT, BEiT, EVA, DINOv2 with registers, ...

The patches are those of the library's ``forward_features``, without the tokens that stand before them (class,
distillation and register tokens); heads and pools are left out. A trial on the ``meta`` device (shapes only) finds out
before it is built whether a model keeps its patches, rather than a list of names.
"""

from pathlib import Path
from typing import Any, Self, get_args

import torch
from torch import Tensor

from nanovlm import CheckpointError, ConfigError, PatchGrid, hookimpl, unknown
from nanovlm.borrowed import layers
from nanovlm.borrowed_encoder import (
    BorrowedEncoder,
    BorrowedEncoderConfig,
    check_tokens,
    patches_along,
    prune,
    trial,
)
from nanovlm.components import Resample
from nanovlm.errors import summary
from nanovlm.hub import CONFIG, WEIGHTS, fetch
from nanovlm.seeding import seeded
from nanovlm.weights import load_weights, read_json, read_tensors

# Arguments of timm that would load weights or code from elsewhere, or are options here.
RESERVED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "num_classes")


class TimmViT(BorrowedEncoder):
    class Config(BorrowedEncoderConfig):
        model: str = "vit_base_patch16_siglip_224"
        """timm's name of the architecture; of a checkpoint, what its config.json says."""
        options: dict[str, Any] = {}
        """What timm builds it with beside its defaults (`depth: 6`); of a checkpoint, its `model_args`."""

        @classmethod
        def tiny(cls) -> Self:
            sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
            return cls(model="vit_small_patch14_reg4_dinov2", options=sizes, image_size=16)

        def resolved(self) -> Self:
            if self.weights == "random":
                return self.with_usual(usual_picture(self.model, self.options))
            content = read_timm_config(fetch(self.weights, CONFIG))
            found = {"model": content["architecture"], "options": content["options"]}
            for key in self.model_fields_set & found.keys():
                if getattr(self, key) != found[key]:
                    raise ConfigError(
                        f"{key}={getattr(self, key)!r} contradicts the checkpoint {self.weights!r}, which has "
                        f"{key}={found[key]!r}: leave the option out, or use weights: random"
                    )
            return self.with_usual(usual_picture(**found, pretrained=content["pretrained_cfg"]), **found)

    def __init__(self, config: Config) -> None:
        size = config.image_size or usual_picture(config.model, config.options)["image_size"]
        super().__init__(config, size)
        self.config = config
        with torch.device("meta"):
            draft = build(config.model, config.options)
            side = patches_along(config.model, size, patch_size(draft, config.model))
            draft = resized(draft, size, config.model).train()  # in which some models drop patches
            tokens, self.left_out = trial(config.model, draft, size, draft.forward_features)
        check_tokens(config.model, tokens, side, getattr(draft, "num_prefix_tokens", 0))
        self.grid = PatchGrid(side, side, tokens.shape[-1])
        self.model = resized(build(config.model, config.options), size, config.model)
        prune(self.model, self.left_out)
        self.blocks = layers(self.model)

    def tokens(self, pictures: Tensor) -> Tensor:
        tokens: Tensor = self.model.forward_features(pictures)
        return tokens

    def load_pretrained(self) -> None:
        """Load the whole checkpoint strictly, in its own size and with its head; then take over what is used of it."""
        if self.config.weights == "random":
            return
        folder = fetch(self.config.weights, WEIGHTS)
        classes = read_timm_config(folder)["num_classes"]
        with seeded("whole"):  # its random weights are all overwritten
            whole = build(self.config.model, self.config.options, num_classes=classes)
        load_weights(whole, read_tensors(folder), self.config.weights)
        state = resized(whole, self.image.size, self.config.model).state_dict()
        load_weights(self.model, {name: state[name] for name in self.model.state_dict()}, self.config.weights)


def build(name: str, options: dict[str, Any], num_classes: int = 0) -> Any:
    """The model with random weights, in its own size; ConfigError for one that timm cannot build."""
    import timm

    pretrained_config(name)
    if odd := [key for key in RESERVED if key in options]:
        raise ConfigError(f"options: {', '.join(odd)} is not about the architecture: leave it out")
    try:
        return timm.create_model(name, pretrained=False, num_classes=num_classes, **options)
    except Exception as error:  # whatever the code of an architecture stumbles over
        raise ConfigError(f"options: timm cannot build this {name}: {summary(error)}") from None


def pretrained_config(name: str) -> dict[str, Any]:
    """What timm knows about a model's checkpoint; ConfigError for a name that is none of timm's."""
    import timm

    if not timm.is_model(name):  # which a path or a hub id is not either: timm would load from there
        message = unknown("model", name, timm.list_models()).partition("\n")[0]
        raise ConfigError(f"model: {message} `timm.list_models('*vit*')` lists what timm has")
    try:
        found = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # the tag after the dot
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise ConfigError(f"model: {error} Known here: {', '.join(tags)}") from None
    return found.to_dict() if found else {}


def read_timm_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's ``config.json`` as timm writes it, in its older layout (one level) as well."""
    content: dict[str, Any] = read_json(folder / "config.json")
    if "architecture" not in content:
        raise CheckpointError(
            f"{folder / 'config.json'} names no architecture of timm (model_type={content.get('model_type')!r}): "
            "a checkpoint of transformers is for hf_vision"
        )
    picture, arguments = content.get("pretrained_cfg", content), content.get("model_args") or {}
    classes = [source["num_classes"] for source in (arguments, content, picture) if "num_classes" in source]
    return {
        "architecture": content["architecture"],
        "options": {key: value for key, value in arguments.items() if key not in RESERVED},
        "pretrained_cfg": picture,
        "num_classes": classes[0] if classes else 0,
    }


def usual_picture(model: str, options: dict[str, Any], pretrained: dict[str, Any] | None = None) -> dict[str, Any]:
    """The options of the picture that a checkpoint decides, where it says nothing timm's default for ``model``."""
    known = pretrained_config(model) | (pretrained or {})
    size = options.get("img_size") or (known.get("input_size") or (3, 224, 224))[1:]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1:
        raise ConfigError(f"{model} is made for pictures of {size[0]} x {size[1]} pixels, timm_vit for square ones")
    found = {"image_size": sides.pop(), "resample": known.get("interpolation")}
    found |= {key: list(known[key]) for key in ("mean", "std") if known.get(key)}
    if found["resample"] not in get_args(Resample):  # such as `random`, for training with augmented pictures
        del found["resample"]
    return found


def resized(model: Any, size: int, name: str) -> Any:
    """The model for another picture size, its position embeddings interpolated by timm."""
    own = model.patch_embed.img_size
    if own == (size, size):
        return model
    if not hasattr(model, "set_input_size"):
        raise ConfigError(f"{name} is made for image_size={own[0]} only, not {size}: leave the option out")
    model.set_input_size(img_size=(size, size))
    return model


def patch_size(model: Any, name: str) -> int:
    """Pixels along each side of a patch (of a whole field of view, where convolutions come first)."""
    embedding = getattr(model, "patch_embed", None)
    own, grid = getattr(embedding, "img_size", None), getattr(embedding, "grid_size", None)
    if not own or not grid or len({pixels // patches for pixels, patches in zip(own, grid, strict=True)}) > 1:
        raise ConfigError(
            f"{name} has no grid of square patches, which timm_vit is for: use a plain vision transformer"
        )
    return int(own[0] // grid[0])


@hookimpl
def register_vision_encoders(register):
    register("timm_vit", TimmViT)
