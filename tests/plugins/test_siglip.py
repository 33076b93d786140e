import pytest
import torch
from tiny import random_pixels
from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel

from nanovlm import CheckpointError, ConfigError, ImageSpec, PatchGrid

SMALL = {
    "three heads": {"image_size": 32, "patch_size": 8, "hidden_size": 48, "num_attention_heads": 3},
    "twelve layers": {"image_size": 28, "patch_size": 14, "hidden_size": 16, "num_hidden_layers": 12},
    "another eps": {"image_size": 16, "patch_size": 4, "layer_norm_eps": 1e-2},
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


def load(registries, folder):
    """The encoder as an experiment gets it: resolved from ``config.json``, built, and loaded."""
    config = registries.vision_encoders.configure("siglip", {"weights": str(folder)}).resolved()
    encoder = registries.vision_encoders.find("siglip").cls(config)
    encoder.load_pretrained()
    return encoder.eval()


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def assert_equal_outputs(encoder, tower: torch.nn.Module) -> None:
    pixels = random_pixels(3, encoder.image.size)
    expected = tower(pixel_values=(pixels / 255 - 0.5) / 0.5).last_hidden_state
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


def test_it_equals_the_preprocessing_of_transformers(registries):
    from PIL import Image
    from transformers import SiglipImageProcessorPil

    from nanovlm.data.images import to_tensor

    noise = random_pixels(1, 40)[0].permute(1, 2, 0).numpy()
    picture = Image.fromarray(noise).crop((0, 0, 40, 30))
    encoder = registries.vision_encoders.build("siglip", {"image_size": 16, "patch_size": 4, **SIZES})
    processor = SiglipImageProcessorPil(size={"height": 16, "width": 16}, resample=Image.Resampling.BICUBIC)
    expected = torch.as_tensor(processor(picture, return_tensors="pt")["pixel_values"])
    mine = to_tensor(picture, encoder.image)[None] / 127.5 - 1
    torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


def test_the_baselines_architecture_is_known_without_network(registries):
    config = registries.vision_encoders.configure("siglip", {"weights": "google/siglip-base-patch16-224"}).resolved()
    with torch.device("meta"):
        encoder = registries.vision_encoders.find("siglip").cls(config)
        tower = SiglipVisionModel(SiglipVisionConfig(vision_use_head=False))  # its defaults are this checkpoint's
    assert count(encoder) == count(tower) == 85_797_120
    assert encoder.grid == PatchGrid(14, 14, 768)


def test_another_kind_of_model_is_refused_by_name(registries, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip_vision_model"}')
    with pytest.raises(CheckpointError, match="'clip_vision_model', not a SigLIP"):
        load(registries, tmp_path)


def test_another_activation_is_refused(registries, tmp_path):
    SiglipVisionModel(vision_config(hidden_act="gelu")).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="cannot represent hidden_act='gelu'"):
        load(registries, tmp_path)


def test_an_option_that_contradicts_the_checkpoint_is_an_error(registries, tmp_path):
    SiglipVisionModel(vision_config()).save_pretrained(tmp_path)
    options = {"weights": str(tmp_path), "image_size": 32}
    with pytest.raises(ConfigError, match=r"image_size=32 contradicts the checkpoint .* which has image_size=16"):
        registries.vision_encoders.configure("siglip", options).resolved()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 30, "patch_size": 16}, "image_size=30 must be a multiple of patch_size=16"),
        ({"hidden_size": 20, "num_attention_heads": 3}, "num_attention_heads=3 must divide hidden_size=20"),
    ],
)
def test_sizes_that_cannot_work_are_named(registries, options, message):
    with pytest.raises(ConfigError, match=message):
        registries.vision_encoders.build("siglip", options)
