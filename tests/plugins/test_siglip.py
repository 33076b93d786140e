import json

import numpy as np
import pytest
import torch
from hf_folder import rewrite_config
from PIL import Image
from tiny import random_pixels
from transformers import (
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from nanovlm import CheckpointError, ConfigError, ImageSpec, PatchGrid
from nanovlm.data.images import to_tensor

SMALL = {
    "three heads": {"image_size": 32, "patch_size": 8, "hidden_size": 48, "num_attention_heads": 3},
    "twelve layers": {"image_size": 28, "patch_size": 14, "hidden_size": 16, "num_hidden_layers": 12},
    "another eps": {"image_size": 16, "patch_size": 4, "layer_norm_eps": 1e-2},
    "a rest of the picture": {"image_size": 19, "patch_size": 5},  # as of 384 pixels in patches of 14
}
SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}


def vision_config(**options) -> SiglipVisionConfig:
    return SiglipVisionConfig(**SIZES | {"image_size": 16, "patch_size": 4} | options)


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Weights far from their initial zeros and ones, so that none can be left out unnoticed."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def resolve(registries, folder, **options):
    return registries.vision_encoders.configure("siglip", {"weights": str(folder), **options}).resolved()


def load(registries, folder, **options):
    """The encoder as an experiment gets it: resolved from ``config.json``, built, and loaded."""
    config = resolve(registries, folder, **options)
    encoder = registries.vision_encoders.find("siglip").cls(config)
    encoder.load_pretrained()
    return encoder.eval()


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def assert_equal_outputs(encoder, tower: torch.nn.Module, pictures: int = 3, **options) -> None:
    pixels = random_pixels(pictures, encoder.image.size)
    expected = tower(pixel_values=(pixels / 255 - 0.5) / 0.5, **options).last_hidden_state
    error = (encoder(pixels) - expected).norm() / expected.norm()
    assert error < 1e-5


@pytest.mark.parametrize("options", SMALL.values(), ids=SMALL)
def test_it_equals_the_tower_of_transformers(registries, tmp_path, options):
    tower = randomise(SiglipVisionModel(vision_config(**options)))
    tower.save_pretrained(tmp_path)
    encoder = load(registries, tmp_path)
    side = options["image_size"] // options["patch_size"]
    assert encoder.image == ImageSpec(options["image_size"], "bicubic")
    assert encoder.grid == PatchGrid(side, side, options.get("hidden_size", SIZES["hidden_size"]))
    assert_equal_outputs(encoder, tower)


@pytest.mark.parametrize("options", SMALL.values(), ids=SMALL)
def test_the_text_tower_of_a_whole_siglip_is_left_out(registries, tmp_path, options):
    text = SIZES | {"vocab_size": 20}
    config = SiglipConfig(vision_config=vision_config(**options).to_dict(), text_config=text)
    model = randomise(SiglipModel(config))
    model.save_pretrained(tmp_path)
    assert_equal_outputs(load(registries, tmp_path), model.vision_model)


def test_it_equals_the_original_at_true_size(registries, tmp_path):
    """The architecture of google/siglip-base-patch16-224, saved in both forms, with a config.json as the hub's."""
    torch.manual_seed(0)
    whole = SiglipModel(SiglipConfig(text_config=SIZES | {"vocab_size": 20})).eval()
    for parameter in whole.vision_model.parameters():  # biases and norms too
        parameter.data += 0.02 * torch.randn_like(parameter)
    whole.save_pretrained(tmp_path / "whole")
    rewrite_config(tmp_path / "whole", vision_config={"model_type": "siglip_vision_model"})  # all else is the default
    with torch.device("meta"):
        tower = SiglipVisionModel(whole.config.vision_config)
    tower.load_state_dict(whole.vision_model.state_dict(), assign=True)
    tower.save_pretrained(tmp_path / "tower")
    for name in ("whole", "tower"):
        encoder = load(registries, tmp_path / name)
        assert encoder.grid == PatchGrid(14, 14, 768)
        assert_equal_outputs(encoder, whole.vision_model, pictures=1)


SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}


@pytest.mark.parametrize(
    ("options", "side"),
    [
        ({"image_size": 256}, 16),
        ({"image_size": 384}, 24),
        ({"image_size": 512}, 32),
        (SO400M | {"image_size": 384, "patch_size": 14}, 27),
    ],
    ids=["base 256", "base 384", "base 512", "so400m 384"],
)
def test_every_size_is_read_from_a_config_as_the_hub_has_it(registries, tmp_path, options, side):
    config = {
        "model_type": "siglip",
        "text_config": {},
        "vision_config": {"model_type": "siglip_vision_model"} | options,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        encoder = registries.vision_encoders.find("siglip").cls(resolve(registries, tmp_path))
        tower = SiglipVisionModel(SiglipVisionConfig(**options, vision_use_head=False))
    assert encoder.image.size == options["image_size"]
    assert encoder.grid == PatchGrid(side, side, options.get("hidden_size", 768))
    assert count(encoder) == count(tower)


@pytest.mark.parametrize("size", [8, 24, 48])
def test_positions_are_interpolated_for_another_size(registries, tmp_path, size):
    tower = randomise(SiglipVisionModel(vision_config()))
    tower.save_pretrained(tmp_path)
    encoder = load(registries, tmp_path, image_size=size)
    assert encoder.grid == PatchGrid(size // 4, size // 4, 32)
    assert_equal_outputs(encoder, tower, interpolate_pos_encoding=True)


def test_positions_of_the_same_grid_stay_as_they_are(registries, tmp_path):
    tower = randomise(SiglipVisionModel(vision_config(image_size=19, patch_size=5)))
    tower.save_pretrained(tmp_path)
    positions = load(registries, tmp_path, image_size=15).position_embedding  # 3 x 3 patches again
    assert positions.equal(tower.embeddings.position_embedding.weight)


def test_a_size_that_the_patches_do_not_fill_is_the_checkpoints_only(registries, tmp_path):
    SiglipVisionModel(vision_config(image_size=19, patch_size=5)).save_pretrained(tmp_path)
    assert resolve(registries, tmp_path, image_size=19).image_size == 19
    with pytest.raises(ConfigError, match="image_size=33 must be a multiple of patch_size=5, for example 35"):
        resolve(registries, tmp_path, image_size=33)


def test_positions_that_are_not_of_the_checkpoints_own_size_are_refused(registries, tmp_path):
    SiglipVisionModel(vision_config()).save_pretrained(tmp_path)
    rewrite_config(tmp_path, image_size=32)
    for options in ({}, {"image_size": 24}):
        with pytest.raises(CheckpointError, match=r"misshapen \(1\):\n    position_embedding \(16, 32\)"):
            load(registries, tmp_path, **options)


def noise(mode: str, width: int, height: int) -> Image.Image:
    """A picture of random colours, in one of Pillow's modes."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


PICTURES = {
    "RGB": noise("RGB", 40, 30),
    "grey": noise("L", 40, 30),
    "palette": noise("P", 40, 30),
    "very wide": noise("RGB", 600, 3),
    "smaller": noise("RGB", 5, 7),
}


@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR], ids=["SigLIP", "SigLIP 2"])
@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
def test_it_equals_the_preprocessing_of_transformers(registries, tmp_path, picture, resample):
    """To one rounding in hundreds: the library's processor resizes with Pillow, nanovlm with torch."""
    processor = SiglipImageProcessorPil(size={"height": 16, "width": 16}, resample=resample)
    processor.save_pretrained(tmp_path)
    SiglipVisionModel(vision_config()).save_pretrained(tmp_path)
    encoder = load(registries, tmp_path)
    seen: list[torch.Tensor] = []
    encoder.patch_embedding.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    encoder(to_tensor(picture, encoder.image)[None])
    expected = torch.as_tensor(processor(picture, return_tensors="pt")["pixel_values"])
    off = (seen[0] - expected).abs() * 127.5  # of 255
    assert off.max() < 1.01
    assert off.mean() < 0.02


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_the_filter_is_the_checkpoints_unless_it_is_asked_for(registries, tmp_path, file):
    SiglipVisionModel(vision_config()).save_pretrained(tmp_path)
    assert resolve(registries, tmp_path).resample == "bicubic"
    preprocessor = {"resample": 2, "image_mean": [0.5] * 3}
    content = preprocessor if file.startswith("pre") else {"image_processor": preprocessor}
    (tmp_path / file).write_text(json.dumps(content))
    assert resolve(registries, tmp_path).resample == "bilinear"
    assert resolve(registries, tmp_path, resample="lanczos").resample == "lanczos"


@pytest.mark.parametrize(
    ("preprocessor", "normalisation"),
    [
        ({}, (0.5, 0.5)),
        ({"image_mean": [0.25] * 3, "image_std": [2.0] * 3}, (0.25, 2.0)),
        ({"image_mean": 0.1}, (0.1, 0.5)),
        ({"do_normalize": False, "image_mean": [0.5] * 3}, (0.0, 1.0)),
    ],
    ids=str,
)
def test_pixels_are_normalised_as_the_checkpoints_were(registries, tmp_path, preprocessor, normalisation):
    tower = randomise(SiglipVisionModel(vision_config()))
    tower.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    encoder = load(registries, tmp_path)
    mean, std = normalisation
    assert (encoder.config.image_mean, encoder.config.image_std) == normalisation
    pixels = random_pixels(2)
    with torch.no_grad():
        expected = tower(pixel_values=(pixels / 255 - mean) / std).last_hidden_state
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-4, rtol=1e-4)


def test_pixels_are_normalised_as_one_asks(registries, tmp_path):
    SiglipVisionModel(vision_config()).save_pretrained(tmp_path)
    config = resolve(registries, tmp_path, image_mean=0.0, image_std=1.0)
    assert (config.image_mean, config.image_std) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image_mean": [0.485, 0.456, 0.406]}, "image_mean=[0.485, 0.456, 0.406]"),
        ({"image_std": [1, 0.5, 1], "do_rescale": False}, "do_rescale=False, image_std=[1, 0.5, 1]"),
        ({"do_center_crop": True}, "do_center_crop=True"),
        ({"size": {"shortest_edge": 16}}, "size={'shortest_edge': 16}"),
    ],
    ids=str,
)
def test_another_preprocessing_is_refused_by_name(registries, tmp_path, change, named):
    SiglipVisionModel(vision_config()).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(change))
    with pytest.raises(CheckpointError) as caught:
        resolve(registries, tmp_path)
    assert f"this encoder cannot represent {named}; hf_vision reads other encoders" in str(caught.value)


def test_an_unknown_filter_is_named(registries, tmp_path):
    SiglipVisionModel(vision_config()).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"resample": 4}')
    with pytest.raises(ConfigError, match=r"resample='box': input should be 'nearest', 'bilinear'"):
        resolve(registries, tmp_path)


def test_the_baselines_architecture_is_known_without_network(registries):
    config = resolve(registries, "google/siglip-base-patch16-224")
    with torch.device("meta"):
        encoder = registries.vision_encoders.find("siglip").cls(config)
        tower = SiglipVisionModel(SiglipVisionConfig(vision_use_head=False))  # its defaults are this checkpoint's
    assert count(encoder) == count(tower) == 85_797_120
    assert encoder.grid == PatchGrid(14, 14, 768)


@pytest.mark.parametrize("kind", ["clip_vision_model", "clip", "paligemma", None])
def test_another_kind_of_model_is_refused_by_name(registries, tmp_path, kind):
    vision = {"model_type": "siglip_vision_model"}  # of PaliGemma, say: its tower is a SigLIP, but under other names
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "vision_config": vision}))
    with pytest.raises(CheckpointError, match=f"type {kind!r}, not a SigLIP; hf_vision reads other encoders"):
        load(registries, tmp_path)


def test_naflex_is_refused_with_what_to_use_instead(registries, tmp_path):
    Siglip2VisionModel(Siglip2VisionConfig(**SIZES, num_patches=16, patch_size=4)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"NaFlex SigLIP 2 .* use .* google/siglip2-base-patch16-224"):
        load(registries, tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"num_channels": 1}, "num_channels=1"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
    ],
    ids=str,
)
def test_what_it_cannot_represent_is_refused_by_name(registries, tmp_path, change, named):
    SiglipVisionModel(vision_config()).save_pretrained(tmp_path)
    rewrite_config(tmp_path, **change)
    with pytest.raises(CheckpointError, match=f"cannot represent {named}; hf_vision reads other encoders"):
        load(registries, tmp_path)


def test_a_config_with_a_wrong_value_is_named(registries, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "siglip_vision_model", "image_size": [224, 224]}')
    with pytest.raises(ConfigError, match=r"config\.json\.image_size=\[224, 224\]: input should be a valid integer"):
        load(registries, tmp_path)


def test_an_option_that_contradicts_the_checkpoint_is_an_error(registries, tmp_path):
    SiglipVisionModel(vision_config()).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"patch_size=8 contradicts the checkpoint .* which has patch_size=4"):
        resolve(registries, tmp_path, patch_size=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 30, "patch_size": 16}, "image_size=30 must be a multiple of patch_size=16, for example 32"),
        ({"hidden_size": 20, "num_attention_heads": 3}, "num_attention_heads=3 must divide hidden_size=20"),
    ],
)
def test_sizes_that_cannot_work_are_named(registries, options, message):
    with pytest.raises(ConfigError, match=message):
        registries.vision_encoders.build("siglip", options)
