import json

import numpy as np
import pytest
import torch
import transformers
from hf_folder import rewrite_config
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import random_pixels
from transformers import CONFIG_MAPPING, AutoModel
from versions import older

from nanovlm import CheckpointError, ConfigError, ImageSpec, PatchGrid
from nanovlm.data.images import to_tensor

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
SMALL = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
MLP = {"intermediate_size": 24}
FAMILIES = {  # the options of each, and how many tokens stand before its patches
    "dinov2": ({}, 1),
    "dinov2_with_registers": ({"num_register_tokens": 3}, 4),
    "dinov3_vit": ({**MLP, "num_register_tokens": 3}, 4),
    "vit": (MLP, 1),
    "deit": (MLP, 2),
    "beit": (MLP, 1),
    "ijepa": (MLP, 0),
    "clip_vision_model": (MLP, 1),
    "siglip_vision_model": (MLP, 0),
}
HEADS = {  # what checkpoints on the hub are: an encoder under a prefix, with a head
    "vit": "ViTForImageClassification",
    "vit, pretraining": "ViTForMaskedImageModeling",
    "deit": "DeiTForImageClassificationWithTeacher",
    "dinov2": "Dinov2ForImageClassification",
    "beit": "BeitForImageClassification",
    "clip_vision_model": "CLIPVisionModelWithProjection",
}
every_family = pytest.mark.parametrize(("kind", "options", "prefix"), [(k, *v) for k, v in FAMILIES.items()])


def config_of(kind: str, **options):
    return CONFIG_MAPPING[kind](**SMALL | FAMILIES[kind][0] | options)


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Weights far from their initial zeros and ones, so that none can be left out unnoticed."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def save(folder, kind: str, **options) -> torch.nn.Module:
    model = randomise(AutoModel.from_config(config_of(kind, **options)))
    model.save_pretrained(folder)
    return model


def load(registries, folder, **options):
    """The encoder as an experiment gets it: resolved from ``config.json``, built, and loaded."""
    config = registries.vision_encoders.configure("hf_vision", {"weights": str(folder), **options}).resolved()
    encoder = registries.vision_encoders.find("hf_vision").cls(config)
    encoder.load_pretrained()
    return encoder.eval()


def build(registries, **architecture):
    return registries.vision_encoders.build("hf_vision", {"architecture": architecture})


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def assert_equal_patches(encoder, model: torch.nn.Module, prefix: int, **options) -> None:
    """The encoder's output is transformers' own, without the tokens that stand before the patches."""
    pixels = random_pixels(3, encoder.image.size)
    mean, std = (torch.tensor(IMAGENET[key]).view(3, 1, 1) for key in ("mean", "std"))
    tokens = model(pixel_values=(pixels / 255 - mean) / std, **options).last_hidden_state
    patches = encoder.grid.height * encoder.grid.width
    assert tokens.shape[1] == prefix + patches
    assert encoder(pixels).shape == (3, patches, encoder.grid.dim)
    assert (encoder(pixels) - tokens[:, prefix:]).norm() < 1e-5 * tokens.norm()


@every_family
def test_it_equals_transformers(registries, tmp_path, kind, options, prefix):
    model = save(tmp_path, kind)
    encoder = load(registries, tmp_path)
    assert encoder.image == ImageSpec(16, "bicubic")
    assert encoder.grid == PatchGrid(4, 4, 16)
    assert len(encoder.blocks) == SMALL["num_hidden_layers"]
    assert_equal_patches(encoder, model, prefix)


@every_family
def test_what_the_patches_do_not_need_is_taken_out(registries, tmp_path, kind, options, prefix):
    save(tmp_path, kind)
    encoder = load(registries, tmp_path)
    encoder(random_pixels(2)).pow(2).sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []
    assert not any("pooler" in name or "mask_token" in name for name in encoder.state_dict())


@pytest.mark.parametrize("kind", sorted({*FAMILIES} - {"beit", "ijepa"}))
def test_another_picture_size_is_interpolated_as_transformers_does(registries, tmp_path, kind):
    model = save(tmp_path, kind)
    encoder = load(registries, tmp_path, image_size=24)
    assert encoder.grid == PatchGrid(6, 6, 16)
    assert encoder.image.size == 24
    interpolate = {} if kind.startswith("dino") else {"interpolate_pos_encoding": True}
    assert_equal_patches(encoder, model, FAMILIES[kind][1], **interpolate)


@pytest.mark.parametrize(("kind", "head"), HEADS.items())
def test_a_head_is_left_out(registries, tmp_path, kind, head):
    kind = kind.partition(",")[0]
    options = {"encoder_stride": 4} if kind == "vit" else {}
    model = randomise(getattr(transformers, head)(config_of(kind, **options)))
    model.save_pretrained(tmp_path)
    tower = {"clip_vision_model": "vision_model"}.get(kind, kind)
    assert_equal_patches(load(registries, tmp_path), getattr(model, tower), FAMILIES[kind][1])


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_of_two_towers_the_one_for_pictures_is_loaded(registries, tmp_path, name):
    vision = config_of(f"{name}_vision_model").to_dict()
    text = {"hidden_size": 16, **MLP, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    model = randomise(AutoModel.from_config(CONFIG_MAPPING[name](vision_config=vision, text_config=text)))
    model.save_pretrained(tmp_path)
    assert_equal_patches(load(registries, tmp_path), model.vision_model, FAMILIES[f"{name}_vision_model"][1])


def test_the_position_numbers_of_old_checkpoints_are_no_weights(registries, tmp_path):
    model = save(tmp_path, "clip_vision_model")
    file = tmp_path / "model.safetensors"
    numbers = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    save_file(load_file(file) | numbers, file, {"format": "pt"})
    assert_equal_patches(load(registries, tmp_path), model, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_lower_precision_become_fp32(registries, tmp_path, dtype):
    model = save(tmp_path, "vit").to(dtype)
    model.save_pretrained(tmp_path)
    encoder = load(registries, tmp_path)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert_equal_patches(encoder, model.float(), 1)


PROCESSORS = {
    "ViTImageProcessor": {"size": {"height": 16, "width": 16}},
    "DeiTImageProcessor": {"size": {"height": 16, "width": 16}, "do_center_crop": False},
    "CLIPImageProcessor": {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}},
    "SiglipImageProcessorPil": {"size": {"height": 16, "width": 16}, "resample": 1},  # older torchvisions have no 1
    "BitImageProcessor": {"size": {"shortest_edge": 16}, "crop_size": 16, "do_normalize": False},  # of DINOv2
}
RESCALED = {  # to [-1, 1] in three ways
    "factor": {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    "none": {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
    "all in one": {"do_normalize": False, "rescale_factor": 1 / 127.5},
}


def assert_same_preprocessing(encoder, processor) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    expected = torch.as_tensor(processor(picture, return_tensors="pt")["pixel_values"])
    seen = []
    encoder.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    encoder(to_tensor(picture, encoder.image)[None])
    std = torch.tensor(processor.image_std if processor.do_normalize else [1.0] * 3).view(3, 1, 1)
    off = (seen[0] - expected).abs() * std / (processor.rescale_factor if processor.do_rescale else 1)  # of 255
    assert off.max() <= 1.01
    assert off.mean() < 0.5


@pytest.mark.parametrize(("name", "options"), PROCESSORS.items(), ids=PROCESSORS)
def test_a_square_picture_is_prepared_as_the_checkpoint_says(registries, tmp_path, name, options):
    save(tmp_path, "vit", image_size=32)
    processor = getattr(transformers, name)(**options)
    processor.save_pretrained(tmp_path)
    encoder = load(registries, tmp_path)
    assert encoder.image.size == 16  # what the preprocessor makes, not the 32 of the architecture
    assert_same_preprocessing(encoder, processor)


@pytest.mark.parametrize("rescaling", RESCALED.values(), ids=RESCALED)
def test_pixels_are_rescaled_as_the_checkpoint_says(registries, tmp_path, rescaling):
    save(tmp_path, "vit")
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16}, **rescaling)
    processor.save_pretrained(tmp_path)
    assert_same_preprocessing(load(registries, tmp_path), processor)


@pytest.mark.parametrize(
    ("preprocessor", "message", "way_out"),
    [
        ({"resample": 4},
         r"its preprocessor has resample=4, none of nearest \(0\), .*\(3\): choose one with the option resample$",
         {"resample": "bilinear"}),
        ({"do_rescale": False, "image_mean": [127.5] * 3},
         r"rescale_factor=1.0 and no image_std: give the option std, in \[0, 1\]$", {"std": [0.5] * 3}),
    ],
)  # fmt: skip
def test_a_preprocessor_that_options_cannot_stand_for_is_refused(registries, tmp_path, preprocessor, message, way_out):
    save(tmp_path, "vit")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    with pytest.raises(CheckpointError, match=message):
        load(registries, tmp_path)
    load(registries, tmp_path, **way_out)


def test_a_misspelt_option_of_the_architecture_names_the_right_one(registries):
    options = {"architecture": {"model_type": "vit", **SMALL, "hiden_size": 8}}
    with pytest.raises(ConfigError, match=r"architecture: unknown option 'hiden_size'. Did you mean 'hidden_size'\?"):
        registries.vision_encoders.configure("hf_vision", options).resolved()


@pytest.mark.skipif(older("transformers", than="5.23"), reason="transformers has no Granite Docling yet")
def test_a_part_that_is_called_by_keywords_is_taken_out_as_well(registries):
    """Granite Docling's connector to the text, which its patches do not depend on."""
    sizes = SMALL | MLP | {"out_hidden_size": 16, "deepstack_visual_indexes": [1]}
    encoder = build(registries, model_type="granite_docling_vision", **sizes)
    assert any(name.startswith("connector.") for name in encoder.left_out)
    assert not any(name.startswith("model.connector.") for name in encoder.state_dict())
    assert encoder(random_pixels(2)).shape == (2, 16, 16)


def test_loading_leaves_the_global_generator_as_it_was(registries, tmp_path):
    """Of a checkpoint without the pooling head, which transformers draws at random."""
    transformers.ViTForImageClassification(config_of("vit")).save_pretrained(tmp_path)
    config = registries.vision_encoders.configure("hf_vision", {"weights": str(tmp_path)}).resolved()
    encoder = registries.vision_encoders.find("hf_vision").cls(config)
    before = torch.get_rng_state()
    encoder.load_pretrained()
    assert torch.get_rng_state().equal(before)


def test_the_pictures_of_a_processor_with_text_are_prepared_alike(registries, tmp_path):
    save(tmp_path, "clip_vision_model")
    processor = transformers.CLIPImageProcessor(**PROCESSORS["CLIPImageProcessor"])
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": processor.to_dict()}))
    assert_same_preprocessing(load(registries, tmp_path), processor)


def test_options_come_before_the_checkpoints_preprocessor(registries, tmp_path):
    save(tmp_path, "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    asked = {"image_size": 16, "resample": "lanczos", "mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}
    encoder = load(registries, tmp_path, **asked)
    assert encoder.image == ImageSpec(16, "lanczos")
    assert encoder.mean.flatten().tolist() == pytest.approx(asked["mean"])
    assert encoder.std.flatten().tolist() == asked["std"]


def test_one_number_stands_for_all_colours(registries, tmp_path):
    save(tmp_path, "vit")
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": 0.5, "image_std": 0.25}')
    encoder = load(registries, tmp_path)
    assert (encoder.mean.flatten().tolist(), encoder.std.flatten().tolist()) == ([0.5] * 3, [0.25] * 3)


def test_a_resolved_config_is_resolved_for_good(registries, tmp_path):
    save(tmp_path, "dinov3_vit")
    config = registries.vision_encoders.configure("hf_vision", {"weights": str(tmp_path)}).resolved()
    again = type(config).model_validate(config.model_dump())
    assert again.resolved() == again == config


def test_the_known_checkpoint_is_planned_without_network(registries):
    config = registries.vision_encoders.configure("hf_vision", {"weights": "facebook/dinov2-small"}).resolved()
    with torch.device("meta"):
        encoder = registries.vision_encoders.find("hf_vision").cls(config)
        model = AutoModel.from_config(transformers.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518))
    assert encoder.image == ImageSpec(224, "bicubic")
    assert encoder.grid == PatchGrid(16, 16, 384)
    assert count(encoder) == count(model) - 384  # but the mask token
    assert encoder.blocks[0] is encoder.model.encoder.layer[0]


@pytest.mark.parametrize(
    ("architecture", "messages"),
    [
        ({"model_type": "vit_mae", **SMALL}, ["vit_mae is a masked autoencoder", "use an encoder that sees the whole"]),
        ({"model_type": "swin", "depths": [1, 1], "num_heads": [1, 2], "embed_dim": 8, "window_size": 7},
         ["swin gives 784 tokens for 56 x 56 = 3136 patches", "joins them (a hierarchical encoder)"]),
        ({"model_type": "convnext", "depths": [1, 1, 1, 1], "hidden_sizes": [4, 4, 4, 4], "image_size": 32},
         ["convnext gives (2, 4, 1, 1), a feature map", "use an encoder that keeps its patches"]),
        ({"model_type": "yolos", **SMALL, "image_size": [16, 16], "num_detection_tokens": 5},
         ["yolos gives 22 tokens for 4 x 4 = 16 patches, but only 1", "which ones are patches is unclear"]),
        ({"model_type": "pixtral", **SMALL}, ["pixtral gives (1, 32, 16) for two pictures, one sequence"]),
        ({"model_type": "resnet", "depths": [1], "hidden_sizes": [8]}, ["resnet has no patch_size"]),
        ({"model_type": "videomae", **SMALL}, ["does not take pictures of 16 x 16 pixels", "an encoder of videos"]),
        ({"model_type": "bert", "patch_size": 16}, ["bert does not take pictures of 224 x 224 pixels"]),
        ({"model_type": "vit", "image_size": [16, 32]}, ["image_size=[16, 32]: hf_vision is for square pictures"]),
        ({"model_type": "vit", "patch_size": [16, 8]}, ["patch_size=[16, 8]: hf_vision is for square pictures"]),
        ({"model_type": "vit", "hidden_size": "x"}, ["cannot build this vit: ", "hidden_size"]),
        ({"model_type": "dinov_2"}, ["unknown model_type 'dinov_2'. Did you mean 'dinov2'?", "siglip_vision_model"]),
        ({"model_type": 3}, ["unknown model_type '3'"]),
        ({}, ["unknown model_type ''"]),
    ],
    ids=lambda value: str(value.get("model_type", "nothing")) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_is_no_grid_of_patches_is_refused(registries, architecture, messages):
    with pytest.raises(ConfigError) as caught:
        build(registries, **architecture)
    for message in messages:
        assert message in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_what_is_refused_is_never_built(registries, monkeypatch):
    """A large model of the wrong kind is not drawn at random first, which may take minutes."""
    built = []
    original = AutoModel.from_config

    def from_config(*args, **options):
        built.append(original(*args, **options))
        return built[-1]

    monkeypatch.setattr(AutoModel, "from_config", from_config)
    with pytest.raises(ConfigError):
        build(registries, model_type="yolos", **SMALL | {"image_size": [16, 16]})
    assert [parameter.is_meta for parameter in built[0].parameters()]
    assert all(parameter.is_meta for parameter in built[0].parameters())
    assert len(built) == 1


@pytest.mark.parametrize(("size", "works"), [(18, 16), (3, 4), (15, 16), (225, 224)])
def test_a_picture_that_patches_do_not_tile_says_one_that_works(registries, size, works):
    architecture = {"model_type": "vit", **SMALL}
    message = rf"image_size={size} must be a multiple of vit's patch_size=4, for example {works}$"
    with pytest.raises(ConfigError, match=message):
        registries.vision_encoders.build("hf_vision", {"architecture": architecture, "image_size": size})
    registries.vision_encoders.build("hf_vision", {"architecture": architecture, "image_size": works})


@pytest.mark.parametrize("key", ["auto_map", "attn_implementation", "_attn_implementation", "torch_dtype"])
def test_neither_an_experiment_nor_a_checkpoint_brings_code(registries, tmp_path, key):
    with pytest.raises(ConfigError, match=f"architecture: {key} is not about the architecture: leave it out"):
        build(registries, model_type="vit", **SMALL, **{key: "owner/kernel"})
    save(tmp_path, "vit")
    rewrite_config(tmp_path, **{key: "owner/kernel"})
    encoder = load(registries, tmp_path)
    assert key not in encoder.config.architecture
    assert encoder.model.config._attn_implementation in ("sdpa", "eager")


def test_a_quantized_checkpoint_is_refused(registries, tmp_path):
    save(tmp_path, "vit")
    rewrite_config(tmp_path, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(CheckpointError, match="is quantized, which cannot be trained: name the checkpoint that it was"):
        load(registries, tmp_path)


def test_an_architecture_that_contradicts_the_checkpoint_is_an_error(registries, tmp_path):
    save(tmp_path, "vit")
    same = {"model_type": "vit", "hidden_size": 16}
    assert load(registries, tmp_path, architecture=same).grid.dim == 16
    with pytest.raises(ConfigError) as caught:
        load(registries, tmp_path, architecture=same | {"num_hidden_layers": 3, "layers": 2})
    assert "architecture: num_hidden_layers=3, layers=2, the checkpoint" in str(caught.value)
    assert "says otherwise: leave the option out, or use weights: random" in str(caught.value)


def test_tensors_that_do_not_fit_are_listed(registries, tmp_path):
    save(tmp_path, "dinov2")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["layernorm.bias"]
    tensors["layernorm.weight"] = torch.ones(17)
    tensors["encoder.layer.2.norm1.weight"] = torch.ones(16)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load(registries, tmp_path)
    assert str(caught.value).splitlines() == [
        f"{tmp_path} does not fit Dinov2Model:",
        "  missing (1):",
        "    layernorm.bias",
        "  unexpected (1):",
        "    encoder.layer.2.norm1.weight",
        "  misshapen (1):",
        "    layernorm.weight (17,), the model has (16,)",
    ]


def test_another_models_weights_are_not_filled_with_random_numbers(registries, tmp_path):
    save(tmp_path / "vit", "vit")
    save(tmp_path / "clip", "clip_vision_model")
    (tmp_path / "clip" / "model.safetensors").replace(tmp_path / "vit" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"does not fit ViTModel:\n  missing \(\d+\):(\n    .*)+\n  unexpected"):
        load(registries, tmp_path / "vit")


def test_loading_leaves_the_logging_of_transformers_as_it_was(registries, tmp_path, capfd):
    from transformers.utils import logging

    save(tmp_path, "vit")
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    load(registries, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, r"has no config\.json: is it a model folder\?"), ("{", r"config\.json is not JSON")],
)
def test_a_folder_that_is_no_checkpoint_says_why(registries, tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load(registries, tmp_path)
