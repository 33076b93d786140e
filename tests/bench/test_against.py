import sys
from itertools import islice

import pytest
import torch
from tiny import tiny_model, tiny_recipe

from nanovlm import ConfigError
from nanovlm.bench import upstream
from nanovlm.bench.synthetic import draw_examples

# The interface of v0.1 that is used, with a model of as many parameters as ours that does next to nothing.
CONFIG = """
from dataclasses import dataclass

@dataclass
class VLMConfig:
    vit_img_size: int
    vit_patch_size: int
    vit_hidden_dim: int
    vit_inter_dim: int
    vit_n_blocks: int
    vit_n_heads: int
    vit_ln_eps: float
    lm_vocab_size: int
    lm_hidden_dim: int
    lm_inter_dim: int
    lm_n_blocks: int
    lm_n_heads: int
    lm_n_kv_heads: int
    lm_max_position_embeddings: int
    lm_re_base: float
    lm_rms_eps: float
    lm_tie_weights: bool
    lm_max_length: int
    mp_pixel_shuffle_factor: int
"""
MODEL = """
import time
import torch
from models.config import VLMConfig

class VisionLanguageModel(torch.nn.Module):
    seen = []

    def __init__(self, cfg, load_backbone=True):
        super().__init__()
        assert not load_backbone
        self.cfg = cfg
        self.weight = torch.nn.Parameter(torch.zeros({parameters}))

    def forward(self, input_ids, image, attention_mask=None, targets=None):
        self.seen.append((self.cfg, input_ids, image, attention_mask, targets))
        time.sleep({seconds})
        return None, self.weight.sum() * image.mean()
"""


@pytest.fixture
def checkout(tmp_path):
    """``checkout(parameters, seconds)``: a folder with a stand-in of that size, whose passes take that long."""

    def checkout(parameters=None, seconds=0.0, config=CONFIG):
        package = tmp_path / "models"
        package.mkdir()
        number = parameters or sum(parameter.numel() for parameter in tiny_model().parameters())
        (package / "__init__.py").write_text("")
        (package / "config.py").write_text(config)
        (package / "vision_language_model.py").write_text(MODEL.format(parameters=number, seconds=seconds))
        return tmp_path

    return checkout


def test_both_see_the_same_samples_each_in_its_own_layout(checkout, monkeypatch):
    classes = []
    original = upstream.build_theirs
    monkeypatch.setattr(
        upstream,
        "build_theirs",
        lambda package, *rest: classes.append(package.VisionLanguageModel) or original(package, *rest),
    )
    figures = upstream.compare(tiny_recipe(), checkout(), samples=3, repeats=2)
    config, ids, pixels, mask, targets = classes[0].seen[-1]
    assert mask is None  # v0.1's attention takes either a mask or is causal
    assert (config.vit_hidden_dim, config.lm_n_kv_heads, config.lm_max_length) == (16, 2, 79)
    assert ids.shape == targets.shape == (3, 79)
    assert pixels.shape == (3, 3, 16, 16)
    examples = list(islice(draw_examples(tiny_model(), 79, 0, "upstream"), 3))
    for i, example in enumerate(examples):
        tokens = example.tokens
        length = len(tokens.ids)
        assert ids[i, -length:].tolist() == tokens.ids
        assert not ids[i, :-length].any()
        taught = (targets[i] != -100).nonzero().flatten()
        assert ids[i, taught + 1].equal(targets[i, taught])  # the next token
        assert len(taught) == sum(tokens.supervised)
        torch.testing.assert_close(pixels[i] * 255, example.pixels[0].float())
    assert figures["tokens"] == sum(len(example.tokens.ids) + 4 for example in examples)
    assert figures["upstream_tokens"] == 3 * (79 + 4)


def test_they_take_turns_and_the_ratio_is_ours_over_theirs(checkout):
    figures = upstream.compare(tiny_recipe(), checkout(seconds=0.5), samples=2, repeats=3)
    assert len(figures["ratios"]) == 3
    assert 0.5 < figures["upstream_seconds"] < 1
    assert figures["ratio"] < 0.5 and figures["ratio"] in figures["ratios"]


def test_nothing_of_the_checkout_stays_importable(checkout):
    folder = checkout()
    path = list(sys.path)
    upstream.compare(tiny_recipe(), folder, samples=1, repeats=1)
    assert sys.path == path
    assert not [name for name in sys.modules if name.partition(".")[0] == "models"]


def test_a_module_of_that_name_which_was_there_before_is_put_back(checkout, monkeypatch):
    monkeypatch.setitem(sys.modules, "models", before := type(sys)("models"))
    upstream.compare(tiny_recipe(), checkout(), samples=1, repeats=1)
    assert sys.modules["models"] is before


def test_a_folder_without_the_model(tmp_path):
    with pytest.raises(ConfigError) as error:
        upstream.compare(tiny_recipe(), tmp_path, samples=1, repeats=1)
    assert f"--against {tmp_path}: holds no models/vision_language_model.py" in str(error.value)
    assert "git clone --branch v0.1 https://github.com/huggingface/nanoVLM" in str(error.value)


def test_another_version_of_it(checkout):
    folder = checkout(config=CONFIG.replace("    vit_ln_eps: float\n", ""))
    with pytest.raises(ConfigError, match=r"this is not nanoVLM v0.1 \(TypeError: .*vit_ln_eps.*git clone --branch"):
        upstream.compare(tiny_recipe(), folder, samples=1, repeats=1)


def test_what_it_imports_is_missing(checkout):
    folder = checkout()
    (folder / "models" / "config.py").write_text("import not_installed_here")
    with pytest.raises(ConfigError, match=r"cannot be imported: ModuleNotFoundError: .*not_installed_here"):
        upstream.compare(tiny_recipe(), folder, samples=1, repeats=1)


def test_models_of_two_sizes_are_not_compared(checkout):
    with pytest.raises(ConfigError, match=r"ours has [\d,]+ parameters, theirs 7: these are not the same model; use "):
        upstream.compare(tiny_recipe(), checkout(parameters=7), samples=1, repeats=1)


def test_a_component_that_upstream_has_not(checkout):
    recipe = tiny_recipe("projector=mlp")
    with pytest.raises(ConfigError, match=r"projector mlp has no factor, so v0\.1 has no such model"):
        upstream.compare(recipe, checkout(), samples=1, repeats=1)
