"""Pictures of any kind to (3, H, W) uint8, decoded and resized once; normalisation is the encoder's, on the device."""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from nanovlm.components import ImageSpec
from nanovlm.errors import SkipSample

ImageSource = str | Path | bytes | Image.Image

MAX_PIXELS = 64_000_000  # a decoded picture takes three bytes a pixel, or more, in every loader worker


def to_tensor(source: ImageSource, spec: ImageSpec) -> Tensor:
    """(3, size, size) uint8 of a path, encoded bytes or a Pillow image; SkipSample if it cannot be read.

    A JPEG is decoded in full: decoded at half the size (``Image.draft``), a photograph of 640 x 480 pixels would be off
    by 0.5 to 2.6/255 in the mean at 224, a page of text by 7.5/255.
    """
    image = open_image(source)
    sizes = [(spec.size, spec.size)]  # height, width
    if spec.longest_edge:
        sizes.insert(0, in_proportion(image.height, image.width, spec.longest_edge))
    if spec.resample in ("bilinear", "bicubic"):
        # Pillow's filters in a fifth of its time, off by 1/255 in one value of two hundred (Pillow 12; 13 resizes some
        # upright pictures in the other order, which clips elsewhere: by up to 6/255 in photographs).
        pixels = _pixels(image)[None].permute(0, 3, 1, 2)  # (1, 3, H, W)
        for size in sizes:
            pixels = F.interpolate(pixels, size, mode=spec.resample, antialias=True)
        return pixels[0].contiguous()
    for height, width in sizes:
        image = image.resize((width, height), Image.Resampling[spec.resample.upper()])
    return _pixels(image).permute(2, 0, 1).contiguous()


def in_proportion(height: int, width: int, longest: int) -> tuple[int, int]:
    """The height and width of a picture whose longer side has ``longest`` pixels; the shorter one an even number.

    Rounded as transformers' Idefics3ImageProcessor does it (5.24).
    """
    shape = width / height
    shorter = int(longest / shape) if shape >= 1 else int(longest * shape)
    shorter = max(1, shorter + shorter % 2)
    return (shorter, longest) if shape >= 1 else (longest, shorter)


def _pixels(image: Image.Image) -> Tensor:
    """(H, W, 3) uint8."""
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)


def stack_images(sources: Sequence[ImageSource], spec: ImageSpec) -> Tensor:
    """(n, 3, size, size) uint8; SkipSample if one cannot be read."""
    if not sources:
        return torch.empty(0, 3, spec.size, spec.size, dtype=torch.uint8)
    return torch.stack([to_tensor(source, spec) for source in sources])


def open_image(source: ImageSource) -> Image.Image:
    """An upright RGB picture: the first frame of an animation, transparency over white, 16 bits scaled to 8."""
    try:
        image = source if isinstance(source, Image.Image) else Image.open(_file(source))
        if image.width * image.height > MAX_PIXELS:
            raise SkipSample("picture too large")
        if image is source:  # the dataset's own picture stays as it is
            image = ImageOps.exif_transpose(image)
        else:
            ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image)
    except SkipSample:
        raise
    except FileNotFoundError:
        raise SkipSample("picture not found") from None
    except Image.DecompressionBombError:
        raise SkipSample("picture too large") from None
    except (OSError, ValueError, SyntaxError, EOFError, RuntimeError):  # what Pillow raises for broken files, by format
        raise SkipSample("undecodable picture") from None


def _file(source: str | Path | bytes) -> Path | io.BytesIO:
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source)


def _rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I;16"):
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    elif image.mode in ("I", "F"):  # no range is defined for these: use the picture's own
        low, high = image.getextrema()
        scale = 255 / max(high - low, 1e-9)  # type: ignore[operator]
        image = image.convert("F").point(lambda value: value * scale + (-low * scale)).convert("L")  # type: ignore[operator]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")  # Pillow would copy it
