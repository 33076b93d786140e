"""The model: vision encoder -> projector -> language decoder -> loss."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from nanovlm.adapters import adapters, add_lora
from nanovlm.blueprint import Blueprint, collected, located
from nanovlm.components import LanguageDecoder, VisionEncoder, device_of
from nanovlm.data.conversation import TextFormat, load_text_format
from nanovlm.data.packing import PackedRow
from nanovlm.errors import DataError, SkipSample
from nanovlm.hub import Unreachable
from nanovlm.interop.exported import own_folder
from nanovlm.model_folder import caution, has_tokenizer, kept_plugins, read_config, read_weights, replaced, write_config
from nanovlm.plugins import Registries, load_plugins
from nanovlm.promises import as_many_as_promised, as_promised
from nanovlm.recorded_plugins import of_model
from nanovlm.seeding import seeded
from nanovlm.weights import load_weights, tied_once
from nanovlm.whole_model import load_part, whole_model


class VisionLanguageModel(nn.Module):
    """Pictures and text in, text out.

    Build one from an experiment's blueprint, or load one with ``from_pretrained``. ``build`` draws each component's
    weights from the seed and the component's role alone, so that two models that differ in the projector share all
    of their other weights, bit for bit.
    """

    def __init__(self, blueprint: Blueprint, seed: int = 0, folder: Path | None = None) -> None:
        super().__init__()
        self.blueprint, self.folder = blueprint, folder
        self.borrows_tokenizer = False  # from elsewhere than ``folder``
        with seeded(seed, "vision_encoder"):
            self.vision_encoder: VisionEncoder = blueprint.build_encoder()
        with seeded(seed, "language_decoder"):
            self.language_decoder: LanguageDecoder = blueprint.build_decoder()
        if lora := getattr(blueprint.language_decoder.config, "lora", None):
            with seeded(seed, "lora"), located("language_decoder"):
                add_lora(self.language_decoder, lora)
        with seeded(seed, "projector"):
            self.projector = blueprint.build_projector(self.vision_encoder, self.language_decoder)

    @property
    def num_image_tokens(self) -> int:
        """M, the positions that one picture takes among the tokens."""
        return int(self.projector.num_tokens)

    @property
    def device(self) -> torch.device:
        return device_of(self)

    @cached_property
    def text(self) -> TextFormat:
        """The tokenizer and the template, loaded when first used."""
        config = self.blueprint.language_decoder.config
        with located("language_decoder"):
            return load_text_format(config, config.vocab_size, self.folder, self.borrows_tokenizer)

    def forward(self, row: PackedRow) -> Tensor:
        """The sum of the losses at a row's targets, a scalar."""
        return self.losses(row).sum()

    def losses(self, row: PackedRow) -> Tensor:
        """The loss at each target, (number of targets,) float32. The head runs on these positions only."""
        hidden = self.hidden(row)[row.target_slots]
        logits = self.language_decoder.logits(hidden)  # (number of targets, V)
        return F.cross_entropy(logits.float(), row.targets[row.target_slots], reduction="none")

    def hidden(self, row: PackedRow, cache: Any = None) -> Tensor:
        """The decoder's last hidden states, (T, D)."""
        return self.language_decoder(self.embed(row), row.segments, cache)

    def embed(self, row: PackedRow) -> Tensor:
        """(T, D): the text's embeddings, with the projected pictures in their slots."""
        x = self.language_decoder.embed(row.token_ids)
        if len(row.pixels) == 0:
            return x
        image_tokens = self.project(self.encode(row.pixels)).flatten(0, 1)  # (B*M, D)
        image_tokens = image_tokens[: len(row.image_slots)]  # without those of filling
        return x.index_copy(0, row.image_slots, image_tokens.to(x.dtype))

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, N, C)."""
        name = self.blueprint.vision_encoder.name
        return as_promised(self.vision_encoder(pixels), self.vision_encoder.grid, len(pixels), name)

    def project(self, patches: Tensor) -> Tensor:
        """(B, N, C) -> (B, M, D)."""
        expected = (len(patches), self.num_image_tokens, self.language_decoder.dim)
        return as_many_as_promised(self.projector(patches), expected, self.blueprint.projector.name)

    def trainable(self, role: str) -> list[nn.Parameter]:
        """What of a component is trained where it is not frozen: all of it, but of a decoder with LoRA the adapters."""
        component: nn.Module = getattr(self, role)
        return adapters(component) or list(component.parameters())

    def train_only(self, roles: Iterable[str]) -> None:
        """Freeze everything but these components."""
        self.requires_grad_(False)
        for role in roles:
            for parameter in self.trainable(role):
                parameter.requires_grad_()

    def load_pretrained(self) -> None:
        """Load the weights that each component's ``weights`` names; what is missing without network, at once."""
        with collected(only=Unreachable) as problems:
            for part in self.blueprint.parts:
                component = getattr(self, part.where)
                with problems, located(part.where):
                    if whole_model(part):
                        load_part(part, component)
                    elif load := getattr(component, "load_pretrained", None):
                        load()

    def generate(self, prompt: str, images: Iterable[Any] = (), max_new_tokens: int = 64) -> str:
        """The model's answer to ``prompt`` about ``images`` (paths, bytes or Pillow images), greedily decoded.

        Raises DataError for a picture that cannot be read, and for marks (``<image>``) that are not as many.
        """
        from nanovlm.generation import Prompt, generate

        try:
            example = Prompt(prompt, list(images)).example(self.text, self.vision_encoder.image)
        except SkipSample as skip:
            raise DataError(f"the question cannot be asked: {skip.reason}") from None
        return generate(self, [example], max_new_tokens)[0]

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json``, ``model.safetensors`` (tied weights once) and the tokenizer, whole or not at all.

        dtype: of the weights there, by default their own; a model that is loaded has fp32, whatever its folder has.
        The plugins of a model that was loaded stay those that its own folder names. Replaces a model or an empty
        folder; a ConfigError where ``folder`` holds anything else.
        """
        with replaced(folder) as part:
            write_config(self.blueprint, self.text.template, part, kept_plugins(self.folder))
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tied_once(self).items()}
            if dtype:
                tensors |= {name: tensor.to(dtype) for name, tensor in tensors.items() if tensor.is_floating_point()}
            save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
            self.text.tokenizer.save_pretrained(str(part))

    @classmethod
    def from_pretrained(
        cls, source: str | Path, registries: Registries | None = None, device: str = "cpu", tokenizer: str = ""
    ) -> VisionLanguageModel:
        """Load a model folder or a hub id, ours or nanoVLM's. Needs no pretrained backbone, and for ours no network.

        tokenizer: a folder or hub id in the place of the model's own; nanoVLM's checkpoints only name one on the hub.
        Warns of what is done otherwise than in nanoVLM, and of a component that is here from another package. Raises
        CheckpointError where the folder is not a model or its tensors do not fit, PluginError (ConfigError, where no
        package was recorded) where a component is not installed.
        """
        from nanovlm.hub import MODEL, fetch

        folder = own_folder(fetch(str(source), MODEL, option="model"))
        choices = read_config(folder)
        if tokenizer:
            decoder = choices["language_decoder"]
            choices["language_decoder"] = decoder.model_copy(update={"tokenizer": tokenizer})
        registries = registries or load_plugins()
        remarks = of_model(folder, str(source)).check(choices, registries)
        blueprint = Blueprint.of(choices, registries, resolve=False)
        model = cls(blueprint, folder=folder)
        model.borrows_tokenizer = bool(tokenizer) or not has_tokenizer(folder)
        load_weights(model, read_weights(folder), source=str(folder), adapted=True)
        for words in filter(None, (*remarks, caution(folder))):
            warnings.warn(words, stacklevel=2)
        return model.to(device).eval()
