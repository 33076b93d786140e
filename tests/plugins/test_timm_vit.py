import json

import pytest
import timm
import torch
from hf_folder import rewrite_config
from safetensors.torch import load_file, save_file
from tiny import random_pixels
from versions import older

from nanovlm import CheckpointError, ConfigError, ImageSpec, PatchGrid

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
FAMILIES = {  # how many tokens stand before each one's patches
    "vit_tiny_patch16_224": 1,
    "vit_small_patch14_reg4_dinov2": 5,
    "vit_base_patch16_siglip_224": 0,
    "vit_base_patch16_clip_224": 1,
    "deit_tiny_distilled_patch16_224": 2,
    "beit_base_patch16_224": 1,
    "eva02_tiny_patch14_224": 1,
    "vit_small_patch16_dinov3": 5,
    "vit_relpos_small_patch16_224": 0,
}
OLDER = older("timm", than="1.0.31")
if not OLDER:  # an older one does not say how many tokens this has
    FAMILIES["cait_xxs24_224"] = 1
ONE_SIZE = {"cait_xxs24_224", "vit_relpos_small_patch16_224", *(["beit_base_patch16_224"] if OLDER else [])}
every_family = pytest.mark.parametrize("name", FAMILIES)


def save(folder, name: str, num_classes: int = 3, **options) -> torch.nn.Module:
    """A checkpoint as timm writes it, head included, its weights far from their initial zeros and ones."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=num_classes, **SMALL | options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    timm.models.save_for_hf(model, folder, model_args=SMALL | options, safe_serialization=True)
    return model.eval()


def load(registries, folder, **options):
    """The encoder as an experiment gets it: resolved from ``config.json``, built, and loaded."""
    config = registries.vision_encoders.configure("timm_vit", {"weights": str(folder), **options}).resolved()
    encoder = registries.vision_encoders.find("timm_vit").cls(config)
    encoder.load_pretrained()
    return encoder.eval()


def build(registries, **options):
    return registries.vision_encoders.build("timm_vit", options)


@torch.no_grad()
def assert_equal_patches(encoder, model: torch.nn.Module, prefix: int) -> None:
    """The encoder's output is timm's own, of pictures normalised by timm, without the tokens before the patches."""
    pixels = random_pixels(3, encoder.image.size)
    known = timm.data.resolve_data_config(model=model)
    normalise = timm.data.transforms_factory.transforms.Normalize(known["mean"], known["std"])
    tokens = model.forward_features(normalise(pixels / 255))
    assert tokens.shape[1] == prefix + encoder.grid.height * encoder.grid.width
    assert encoder(pixels).shape == (3, encoder.grid.height * encoder.grid.width, encoder.grid.dim)
    assert (encoder(pixels) - tokens[:, prefix:]).norm() < 1e-5 * tokens.norm()


@every_family
def test_it_equals_timm(registries, tmp_path, name):
    model = save(tmp_path, name)
    encoder = load(registries, tmp_path)
    assert encoder.image.size == 16
    assert encoder.grid == PatchGrid(4, 4, 32)
    assert len(encoder.blocks) == SMALL["depth"]
    assert_equal_patches(encoder, model, FAMILIES[name])


@every_family
def test_heads_and_pools_are_left_out(registries, tmp_path, name):
    save(tmp_path, name)
    encoder = load(registries, tmp_path)
    encoder(random_pixels(2)).pow(2).sum().backward()
    assert [key for key, parameter in encoder.named_parameters() if parameter.grad is None] == []
    assert not any(part in key for key in encoder.state_dict() for part in ("head", "fc_norm", "attn_pool"))


@pytest.mark.parametrize("name", sorted({*FAMILIES} - ONE_SIZE))
def test_another_picture_size_is_interpolated_as_timm_does(registries, tmp_path, name):
    model = save(tmp_path, name)
    encoder = load(registries, tmp_path, image_size=24)
    assert encoder.grid == PatchGrid(6, 6, 32)
    if "beit" in name:  # the only one that cannot be told to take pictures of any size
        model.set_input_size(img_size=(24, 24))
    else:
        dynamic = timm.create_model(name, num_classes=3, dynamic_img_size=True, **SMALL).eval()
        dynamic.load_state_dict(model.state_dict())
        model = dynamic
    assert_equal_patches(encoder, model, FAMILIES[name])


def test_a_model_of_one_size_only_says_so(registries):
    with pytest.raises(
        ConfigError, match="cait_xxs24_224 is made for image_size=16 only, not 24: leave the option out"
    ):
        build(registries, model="cait_xxs24_224", options=SMALL, image_size=24)


def test_a_picture_that_patches_do_not_tile_says_one_that_works(registries):
    with pytest.raises(
        ConfigError, match=r"image_size=18 must be a multiple of vit_tiny.*patch_size=4, for example 16$"
    ):
        build(registries, model="vit_tiny_patch16_224", options=SMALL, image_size=18)


def test_loading_leaves_the_global_generator_as_it_was(registries, tmp_path):
    save(tmp_path, "vit_tiny_patch16_224")
    config = registries.vision_encoders.configure("timm_vit", {"weights": str(tmp_path)}).resolved()
    encoder = registries.vision_encoders.find("timm_vit").cls(config)
    before = torch.get_rng_state()
    encoder.load_pretrained()
    assert torch.get_rng_state().equal(before)


def test_convolutions_may_come_before_the_patches(registries):
    with torch.device("meta"):
        encoder = build(registries, model="vit_small_r26_s32_224")
    assert encoder.grid == PatchGrid(7, 7, 384)


@pytest.mark.parametrize(
    ("name", "spec", "mean"),
    [
        ("vit_base_patch16_clip_224.openai", ImageSpec(224, "bicubic"), 0.48145466),
        ("vit_base_patch16_siglip_256", ImageSpec(256, "bicubic"), 0.5),
        ("deit_tiny_patch16_224", ImageSpec(224, "bicubic"), 0.485),
        ("vit_small_patch14_reg4_dinov2.lvd142m", ImageSpec(518, "bicubic"), 0.485),
    ],
)
def test_pictures_are_by_default_as_timm_knows_the_model(registries, name, spec, mean):
    config = registries.vision_encoders.configure("timm_vit", {"model": name}).resolved()
    with torch.device("meta"):
        assert registries.vision_encoders.find("timm_vit").cls(config).image == spec
    assert config.mean[0] == mean


def test_the_checkpoints_picture_comes_before_timms_and_an_option_before_both(registries, tmp_path):
    save(tmp_path, "vit_tiny_patch16_224")
    picture = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "input_size": [3, 16, 16]}
    rewrite_config(tmp_path, pretrained_cfg=picture)
    encoder = load(registries, tmp_path)
    assert encoder.image == ImageSpec(16, "bilinear")
    assert encoder.mean.flatten().tolist() == pytest.approx(picture["mean"])
    assert encoder.std.flatten().tolist() == pytest.approx(picture["std"])
    assert load(registries, tmp_path, resample="lanczos").image.resample == "lanczos"


def test_a_filter_that_pillow_has_not_is_no_filter(registries, tmp_path):
    save(tmp_path, "vit_tiny_patch16_224")
    rewrite_config(tmp_path, pretrained_cfg={"interpolation": "random"})
    assert load(registries, tmp_path).image.resample == "bicubic"


def test_the_older_layout_of_a_config_is_read_as_well(registries, tmp_path):
    model = save(tmp_path, "vit_tiny_patch16_224")
    content = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "model_args": SMALL, "mean": [0.2] * 3}
    (tmp_path / "config.json").write_text(json.dumps(content))
    encoder = load(registries, tmp_path)
    assert encoder.mean.flatten().tolist() == pytest.approx([0.2] * 3)
    assert encoder.model.pos_embed.equal(model.pos_embed)


def test_a_resolved_config_is_resolved_for_good(registries, tmp_path):
    save(tmp_path, "eva02_tiny_patch14_224")
    config = registries.vision_encoders.configure("timm_vit", {"weights": str(tmp_path)}).resolved()
    again = type(config).model_validate(config.model_dump())
    assert again.resolved() == again == config


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swin_tiny_patch4_window7_224", r"gives \(2, 7, 7, 768\), a feature map and not one token a patch"),
        ("convnext_tiny", "convnext_tiny has no grid of square patches, which timm_vit is for"),
        ("naflexvit_base_patch16_gap", "naflexvit_base_patch16_gap has no grid of square patches"),
        ("pit_ti_224", "gives 1 tokens for 28 x 28 = 784 patches: it drops patches .* or joins them"),
        ("vit_tin_patch16_224", r"unknown model 'vit_tin_patch16_224'. Did you mean 'vit_tiny_patch16_224'\? .*lists"),
        ("vit_tiny_patch16_224.nothing", r"Invalid pretrained tag \(nothing\).*Known here: vit_tiny_patch16_224"),
        ("hf-hub:timm/vit_tiny_patch16_224", "unknown model 'hf-hub:timm/vit_tiny_patch16_224'"),
        ("local-dir:/tmp", "unknown model 'local-dir:/tmp'"),
    ],
)  # fmt: skip
def test_what_is_no_grid_of_patches_is_refused(registries, name, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        build(registries, model=name)


def test_a_model_that_drops_patches_in_training_is_refused(registries):
    message = "vit_tiny_patch16_224 gives 9 tokens for 4 x 4 = 16 patches: it drops patches"
    with pytest.raises(ConfigError, match=message):
        build(registries, model="vit_tiny_patch16_224", options=SMALL | {"patch_drop_rate": 0.5})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_path": "weights.pth"}, "options: checkpoint_path is not about the architecture: leave it out"),
        ({"pretrained": True}, "options: pretrained is not about the architecture"),
        ({"depht": 2}, "options: timm cannot build this vit_tiny_patch16_224: .*depht"),
        ({"img_size": [16, 32]}, "is made for pictures of 16 x 32 pixels, timm_vit for square ones"),
        ({"in_chans": 1}, "does not take pictures of 224 x 224 pixels"),
    ],
)
def test_options_that_cannot_work_are_named(registries, options, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        build(registries, model="vit_tiny_patch16_224", options=options)


def test_options_that_contradict_the_checkpoint_are_an_error(registries, tmp_path):
    save(tmp_path, "vit_tiny_patch16_224")
    assert load(registries, tmp_path, model="vit_tiny_patch16_224").grid.dim == 32
    with pytest.raises(
        ConfigError, match=r"model='deit_tiny_patch16_224' contradicts the checkpoint .*leave the option"
    ):
        load(registries, tmp_path, model="deit_tiny_patch16_224")


def test_tensors_that_do_not_fit_are_listed(registries, tmp_path):
    save(tmp_path, "vit_tiny_patch16_224")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["norm.bias"], tensors["head.bias"]
    tensors["blocks.2.norm1.weight"] = torch.ones(32)
    tensors["norm.weight"] = torch.ones(33)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load(registries, tmp_path)
    assert str(caught.value).splitlines() == [
        f"{tmp_path} does not fit VisionTransformer:",
        "  missing (2):",
        "    head.bias",
        "    norm.bias",
        "  unexpected (1):",
        "    blocks.2.norm1.weight",
        "  misshapen (1):",
        "    norm.weight (33,), the model has (32,)",
    ]


def test_a_checkpoint_of_transformers_names_the_plugin_for_it(registries, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    message = r"names no architecture of timm \(model_type='dinov2'\): a checkpoint of transformers is for hf_vision"
    with pytest.raises(CheckpointError, match=message):
        load(registries, tmp_path)
