"""``nanovlm generate``: ask a model about a picture."""

from typing import Annotated

import typer
from PIL import Image

from nanovlm.cli.options import Device, DeviceChoice, PluginFiles, TokenizerChoice
from nanovlm.data.conversation import IMAGE_MARK
from nanovlm.data.images import open_image
from nanovlm.errors import ConfigError, DataError, SkipSample
from nanovlm.interop.opening import find_model, load_model
from nanovlm.plugins import load_plugins
from nanovlm.training.precision import choose_device


def command(
    model: Annotated[str, typer.Option(help="A run folder, a model folder, or a hub id.")],
    prompt: Annotated[str, typer.Option(help="What to ask; <image> marks a picture's place.")],
    image: Annotated[list[str] | None, typer.Option(help="A picture; may be given several times.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 64,
    tokenizer: TokenizerChoice = "",
    device: DeviceChoice = Device.AUTO,
    plugin: PluginFiles = None,
) -> None:
    """Ask a model about a picture, or about several, or about none."""
    pictures = [open_picture(file) for file in image or []]
    check_marks(prompt, len(pictures))
    chosen = str(choose_device(device.value))
    loaded = load_model(find_model(model), load_plugins(plugin or ()), chosen, tokenizer)
    print(loaded.generate(prompt, pictures, max_new_tokens))


def open_picture(file: str) -> Image.Image:
    try:
        return open_image(file)
    except SkipSample as skip:
        raise DataError(f"--image {file}: {skip.reason}") from None


def check_marks(prompt: str, pictures: int) -> None:
    marks = prompt.count(IMAGE_MARK)
    if marks not in (0, pictures):
        raise ConfigError(
            f"--prompt marks {marks} places with {IMAGE_MARK}, --image names {pictures} pictures: "
            "mark one place for each picture, or none (pictures then come first)"
        )
