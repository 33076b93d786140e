"""``nanovlm generate``: ask a model about a picture."""

from typing import Annotated

import typer

from nanovlm.cli.evaluate import model_folder
from nanovlm.cli.options import Device, PluginFiles
from nanovlm.errors import DataError, SkipSample
from nanovlm.model import VisionLanguageModel
from nanovlm.plugins import load_plugins
from nanovlm.training.precision import choose_device


def command(
    model: Annotated[str, typer.Option(help="A run folder, a model folder, or a hub id.")],
    prompt: Annotated[str, typer.Option(help="What to ask; <image> marks a picture's place.")],
    image: Annotated[list[str] | None, typer.Option(help="A picture; may be given several times.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    device: Device = "auto",
    plugin: PluginFiles = None,
) -> None:
    """Ask a model about a picture."""
    loaded = VisionLanguageModel.from_pretrained(
        model_folder(model), load_plugins(plugin or ()), str(choose_device(device))
    )
    try:
        print(loaded.generate(prompt, image or [], max_new_tokens))
    except SkipSample as skip:
        raise DataError(f"--image {' '.join(image or [])}: {skip.reason}") from None
