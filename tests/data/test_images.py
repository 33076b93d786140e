import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, features

from nanovlm import ImageSpec, SkipSample
from nanovlm.data import images
from nanovlm.data.images import open_image, stack_images, to_tensor

RAMP = np.arange(64, dtype=np.float64).reshape(8, 8) / 63  # 0 at the top left, 1 at the bottom right
AVIF = pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF"))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(size: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def as_array(source) -> np.ndarray:
    """(H, W, 3), after a check that the picture is a plain RGB one."""
    image = open_image(source)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def assert_grey(source, expected: np.ndarray, tolerance: float = 1) -> None:
    array = as_array(source)
    assert np.abs(array - expected[..., None]).max() <= tolerance


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_to_eight(dtype):
    picture = Image.fromarray((RAMP * 65535).astype(dtype))
    assert picture.mode.startswith("I;16")
    assert_grey(picture, RAMP * 255)
    if dtype == "<u2":
        assert_grey(encoded(picture, "PNG"), RAMP * 255)


def test_a_dark_sixteen_bit_picture_stays_dark():
    assert_grey(Image.fromarray((RAMP * 6553).astype("<u2")), RAMP * 25.5)


@pytest.mark.parametrize(("dtype", "mode"), [(np.int32, "I"), (np.float32, "F")])
@pytest.mark.parametrize(("low", "high"), [(0, 1000), (-500, 70_000), (0, 255)])
def test_integers_and_floats_use_their_own_range(dtype, mode, low, high):
    picture = Image.fromarray((low + RAMP * (high - low)).astype(dtype))
    assert picture.mode == mode
    assert_grey(picture, RAMP * 255, tolerance=1.5)


def test_floats_between_zero_and_one_are_seen():
    assert_grey(Image.fromarray(RAMP.astype(np.float32)), RAMP * 255)


@pytest.mark.parametrize("value", [0, 7])
def test_a_picture_of_one_value_is_no_division_by_zero(value):
    array = as_array(Image.fromarray(np.full((3, 3), value, np.float32)))
    assert np.unique(array).size == 1


def test_transparency_is_laid_over_white():
    pixels = np.random.default_rng(1).integers(0, 256, (9, 9, 4), dtype=np.uint8)
    expected = over_white(pixels[..., :3], pixels[..., 3])
    for source in (Image.fromarray(pixels), encoded(Image.fromarray(pixels), "PNG")):
        assert np.abs(as_array(source) - expected).max() <= 1


def test_grey_with_transparency_is_laid_over_white():
    pixels = np.random.default_rng(2).integers(0, 256, (9, 9, 2), dtype=np.uint8)
    expected = over_white(pixels[..., :1].repeat(3, axis=2), pixels[..., 1])
    picture = Image.merge("LA", [Image.fromarray(pixels[..., i]) for i in range(2)])
    for source in (picture, encoded(picture, "PNG")):
        assert np.abs(as_array(source) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_colour_is_white(kind):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((0, 0), 0)
    array = as_array(encoded(picture, kind, transparency=0))
    assert array[0, 0].tolist() == [255, 255, 255]
    assert array[1, 1].tolist() == [200, 100, 50]


def test_a_palette_without_transparency_keeps_its_colours():
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((0, 0), 0)
    assert as_array(encoded(picture, "PNG"))[0, :2].tolist() == [[10, 20, 30], [200, 100, 50]]


@pytest.mark.parametrize(
    ("ink", "colour"), [((0, 0, 0, 0), [255, 255, 255]), ((0, 255, 255, 0), [255, 0, 0]), ((0, 0, 0, 255), [0, 0, 0])]
)
def test_printing_inks_become_colours(ink, colour):
    picture = Image.new("CMYK", (8, 8), ink)
    for source in (picture, encoded(picture, "TIFF"), encoded(picture, "JPEG", quality=100)):
        assert np.abs(as_array(source)[4, 4] - colour).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "YCbCr", "HSV", "LA", "RGBA", "P", "I", "F", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_the_smallest_pictures_of_every_mode_are_resized(mode, size):
    tensor = to_tensor(Image.new(mode, size), ImageSpec(16))
    assert (tensor.shape, tensor.dtype) == ((3, 16, 16), torch.uint8)
    assert tensor.unique().numel() <= 3  # of one colour


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_shows_its_first_frame(kind):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "green", "blue")]
    animation = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(io.BytesIO(animation)).n_frames == 3
    assert as_array(animation)[3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("orientation", "corners"),  # of the upright picture: top left, top right, bottom left, bottom right
    [(1, "rgbw"), (2, "grwb"), (3, "wbgr"), (4, "bwrg"), (5, "rbgw"), (6, "brwg"), (7, "wgbr"), (8, "gwrb")],
)
def test_a_picture_is_turned_upright(orientation, corners):
    colours = {"r": [255, 0, 0], "g": [0, 255, 0], "b": [0, 0, 255], "w": [255, 255, 255]}
    stored = np.array([[colours["r"], colours["g"]], [colours["b"], colours["w"]]], np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = as_array(encoded(Image.fromarray(stored), "PNG", exif=exif))
    assert array.reshape(4, 3).tolist() == [colours[corner] for corner in corners]


def photograph() -> Image.Image:
    """96 x 64 pixels with fine detail: at 24 pixels, JPEG itself could halve it before it is decoded."""
    return noise(24).resize((96, 64), Image.Resampling.BICUBIC)


# How the stored pixels are turned upright, by the EXIF orientation; (H, W, 3) arrays.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("size", [24, 31])
@pytest.mark.parametrize(("mode", "options"), [("RGB", {}), ("RGB", {"progressive": True}), ("L", {}), ("CMYK", {})])
def test_a_jpeg_is_decoded_in_full_and_turned_before_it_is_resized(mode, options, size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    jpeg = encoded(photograph().convert(mode), "JPEG", exif=exif, **options)
    stored = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))  # with every pixel
    assert stored.shape == (64, 96, 3)
    upright = Image.fromarray(np.ascontiguousarray(UPRIGHT[orientation](stored)))
    expected = np.asarray(upright.resize((size, size), Image.Resampling.BICUBIC))
    assert np.abs(to_tensor(jpeg, ImageSpec(size)).numpy().transpose(1, 2, 0).astype(int) - expected).max() <= 1


def test_jpegs_own_reduction_would_show():
    """What the test above is there to notice: the halved picture, as ``Image.draft`` gives it, is another one."""
    jpeg = encoded(photograph(), "JPEG")
    halved = Image.open(io.BytesIO(jpeg))
    halved.draft("RGB", (24, 24))
    assert halved.size == (48, 32)
    assert (to_tensor(halved, ImageSpec(24)).int() - to_tensor(jpeg, ImageSpec(24)).int()).abs().max() > 2


@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_datasets_own_picture_is_not_turned(orientation, loaded):
    exif = Image.Exif()
    exif[0x0112] = orientation
    jpeg = encoded(photograph(), "JPEG", exif=exif)
    picture = Image.open(io.BytesIO(jpeg))
    if loaded:
        picture.load()
    for _ in range(2):  # turned in its place, it would be turned once more
        assert to_tensor(picture, ImageSpec(24)).equal(to_tensor(jpeg, ImageSpec(24)))
    assert (picture.size, picture.getexif()[0x0112]) == ((96, 64), orientation)
    assert picture.tobytes() == Image.open(io.BytesIO(jpeg)).tobytes()


def test_a_tensor_holds_the_pixels_channel_by_channel():
    picture = noise(16)
    tensor = to_tensor(picture, ImageSpec(16))
    assert tensor.numpy().transpose(1, 2, 0).tolist() == np.asarray(picture).tolist()
    assert tensor.is_contiguous()  # so that packing copies whole pictures


def test_a_tensor_has_memory_of_its_own():
    picture = noise(16)
    before = np.asarray(picture).tolist()
    to_tensor(picture, ImageSpec(16)).zero_()
    assert np.asarray(picture).tolist() == before
    assert to_tensor(picture, ImageSpec(16)).any()


@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_the_resize_is_pillows(resample):
    picture = noise(33).crop((0, 0, 33, 21))
    expected = np.asarray(picture.resize((12, 12), getattr(Image.Resampling, resample.upper())))
    off = np.abs(to_tensor(picture, ImageSpec(12, resample)).numpy().transpose(1, 2, 0).astype(int) - expected)
    assert off.max() <= (1 if resample in ("bilinear", "bicubic") else 0)
    assert off.mean() < 0.02


def test_path_bytes_and_picture_are_the_same(tmp_path):
    file = tmp_path / "noise.png"
    noise().save(file)
    sources = [file, str(file), file.read_bytes(), noise()]
    tensors = stack_images(sources, ImageSpec(8))
    assert tensors.shape == (4, 3, 8, 8)
    assert all(tensor.equal(tensors[0]) for tensor in tensors)


def test_no_picture_is_an_empty_stack():
    assert stack_images([], ImageSpec(8)).shape == (0, 3, 8, 8)
    assert stack_images([], ImageSpec(8)).dtype == torch.uint8


def test_the_datasets_own_picture_is_not_changed():
    picture = Image.new("RGBA", (4, 6), (0, 0, 0, 0))
    to_tensor(picture, ImageSpec(8))
    assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGBA", (4, 6), (0, 0, 0, 0))


def png_header(width: int, height: int) -> bytes:
    """A few bytes that promise a picture of this size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


@pytest.mark.parametrize("side", [10_000, 100_000, 2_000_000_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_not_decoded(side):
    with pytest.raises(SkipSample, match=r"^picture too large$"):
        open_image(png_header(side, side))


def test_a_picture_of_just_the_limit_is_read(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 24)
    assert open_image(encoded(noise(24), "PNG")).size == (24, 24)
    for source in (noise(25), encoded(noise(25), "PNG")):
        with pytest.raises(SkipSample, match=r"^picture too large$"):
            open_image(source)


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"<svg/>", png_header(4, 4), b"\x89PNG\r\n\x1a\n"], ids=lambda b: repr(b[:8])
)
def test_what_is_no_picture_is_skipped(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    for source in (content, tmp_path / "file"):
        with pytest.raises(SkipSample, match=r"^undecodable picture$"):
            open_image(source)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_truncated_picture_is_skipped(kind):
    whole = encoded(noise(), kind)
    for end in (10, len(whole) // 2):
        with pytest.raises(SkipSample, match=r"^undecodable picture$"):
            open_image(whole[:end])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", AVIF])
@pytest.mark.filterwarnings("ignore")
def test_damage_of_any_kind_gives_a_picture_or_a_skip(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(noise(), kind, **({} if kind in ("GIF", "BMP") else {"exif": exif}))
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 200), rng.integers(1, 6)):
            damaged[place] = rng.integers(0, 256)
        try:
            outcomes.add(open_image(bytes(damaged)).mode)
        except SkipSample as skip:
            outcomes.add(skip.reason)
    assert outcomes <= {"RGB", "undecodable picture", "picture too large"}
    assert "undecodable picture" in outcomes


def test_a_missing_file_is_called_so(tmp_path):
    with pytest.raises(SkipSample, match=r"^picture not found$"):
        open_image(tmp_path / "nothing.png")
    with pytest.raises(SkipSample, match=r"^undecodable picture$"):
        open_image(tmp_path)
