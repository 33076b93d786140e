import json
import warnings

import pytest
import torch
from command import nanovlm
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer
from upstream_fixtures import MAIN, V01, copied, logits, recorded, row_of, write_tokenizer

from nanovlm import CheckpointError, ConfigError, ImageSpec, VisionLanguageModel, load_plugins
from nanovlm.blueprint import Blueprint
from nanovlm.generation import generate_ids
from nanovlm.interop import upstream

pytestmark = pytest.mark.filterwarnings("ignore:.*nanoVLM cuts a picture into tiles")
both = pytest.mark.parametrize("folder", [MAIN, V01], ids=["current", "v0.1"])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "picture.png"
    Image.radial_gradient("L").convert("RGB").save(file)
    return file


# What it computes


@both
def test_it_gives_the_logits_that_nanovlm_recorded(folder):
    expected = recorded(folder)[2]
    model = VisionLanguageModel.from_pretrained(folder)
    assert not model.training
    assert expected.std() > 0.1
    torch.testing.assert_close(logits(model, folder), expected, atol=1e-5, rtol=0)


@both
def test_it_stays_the_same_in_our_own_format(folder, tokenizer, tmp_path):
    model = VisionLanguageModel.from_pretrained(folder, tokenizer=str(tokenizer))
    model.save_pretrained(tmp_path / "ours")
    again = VisionLanguageModel.from_pretrained(tmp_path / "ours")
    assert logits(again, folder).equal(logits(model, folder))
    assert (again.text.template, again.text.stop_ids) == (model.text.template, model.text.stop_ids)
    assert again.text.prompt("What is this?", 2) == model.text.prompt("What is this?", 2)


@both
def test_a_head_of_its_own_is_kept(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["decoder.head.weight"]
    head = embedding.flip(0).contiguous()
    untied = tensors | {"decoder.token_embedding.weight": embedding, "decoder.head.weight": head}
    model = VisionLanguageModel.from_pretrained(copied(folder, tmp_path / "untied", untied, lm_tie_weights=False))
    torch.testing.assert_close(logits(model, folder), recorded(folder)[2].flip(-1), atol=1e-5, rtol=0)


@both
def test_a_tied_head_may_be_stored_under_either_name_or_both(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    head = tensors.pop("decoder.head.weight")
    expected = logits(VisionLanguageModel.from_pretrained(folder), folder)
    embedding = {"decoder.token_embedding.weight": head}
    for name, held in {"embedding": embedding, "both": embedding | {"decoder.head.weight": head.clone()}}.items():
        model = VisionLanguageModel.from_pretrained(copied(folder, tmp_path / name, tensors | held))
        assert logits(model, folder).equal(expected)


def test_the_published_model_of_v0_1_has_as_many_parameters_here():
    sizes = {
        "vit_hidden_dim": 768, "vit_inter_dim": 3072, "vit_patch_size": 16, "vit_img_size": 224, "vit_n_heads": 12,
        "vit_n_blocks": 12, "lm_hidden_dim": 576, "lm_inter_dim": 1536, "lm_vocab_size": 49152, "lm_n_heads": 9,
        "lm_n_kv_heads": 3, "lm_n_blocks": 30, "lm_max_position_embeddings": 8192,
    }  # fmt: skip
    config = json.loads((V01 / "config.json").read_text()) | sizes
    with torch.device("meta"):
        model = VisionLanguageModel(Blueprint.of(upstream.components(config, "here"), load_plugins(), resolve=False))
    assert sum(parameter.numel() for parameter in model.parameters()) == 222_081_600
    assert model.num_image_tokens == 49


def test_pictures_are_not_normalised_and_are_resized_as_in_nanovlm():
    """torchvision's Resize of a Pillow image: bilinear by default, which v0.1 leaves it at; bicubic now."""
    for folder, resample in ((MAIN, "bicubic"), (V01, "bilinear")):
        encoder = VisionLanguageModel.from_pretrained(folder).vision_encoder
        assert encoder.image == ImageSpec(32, resample)
        black = encoder.patch_embedding.bias.expand(16, -1)
        seen = {}
        encoder.blocks[0].register_forward_pre_hook(lambda _, args, seen=seen: seen.update(x=args[0]))
        encoder(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
        assert seen["x"][0].equal(black + encoder.position_embedding)


# What it is asked


def test_v0_1_puts_the_picture_before_the_question(tokenizer):
    text = VisionLanguageModel.from_pretrained(V01, tokenizer=str(tokenizer)).text
    prompt = text.prompt("What?", 1)
    assert prompt.image_at == [0]
    assert text.tokenizer.decode(prompt.ids) == "Question: What? Answer:"


@pytest.mark.parametrize("pictures", [1, 2])
def test_the_current_format_asks_as_nanovlm_does(tokenizer, pictures):
    """The reference is its way: the tokenizer, with its extra tokens, on all of the text at once."""
    config = json.loads((MAIN / "config.json").read_text())
    extra = dict(list(config["vlm_extra_tokens"].items())[: config["extra_token_amount"]])
    theirs = AutoTokenizer.from_pretrained(
        tokenizer, extra_special_tokens=extra, chat_template=config["lm_chat_template"]
    )
    numbers = [f"<image: {i}>" if pictures > 1 else "" for i in range(pictures)]
    images = "".join(f"{number}<|global_image|>{4 * '<|image|>'}" for number in numbers)
    messages = [{"role": "user", "content": f"{images}What is this?"}]
    expected = theirs.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
    image_id = theirs.convert_tokens_to_ids("<|image|>")
    assert image_id == 300

    model = VisionLanguageModel.from_pretrained(MAIN, tokenizer=str(tokenizer))
    prompt = model.text.prompt("What is this?", pictures)
    laid_out = list(prompt.ids)
    for at in reversed(prompt.image_at):
        laid_out[at:at] = [image_id] * model.num_image_tokens
    assert laid_out == expected


def test_an_answer_ends_where_the_chat_template_ends_a_turn(tokenizer):
    text = VisionLanguageModel.from_pretrained(MAIN, tokenizer=str(tokenizer)).text
    end = text.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in text.stop_ids
    assert text.decode([*b"yes", end, *b"no"]) == text.decode(list(b"yes"))


# The tokenizer


@both
def test_it_loads_without_a_tokenizer_and_says_how_to_name_one(folder):
    model = VisionLanguageModel.from_pretrained(folder)
    named = json.loads((folder / "config.json").read_text())["lm_tokenizer"]
    assert generate_ids(model, row_of(model, folder), 3, stop_ids=())
    with pytest.raises(ConfigError) as caught:
        model.generate("What?")
    assert str(caught.value) == (
        f"language_decoder: the tokenizer of {folder} is to be '{named}', which is no folder here, and it is not in "
        "the cache of the Hugging Face hub, and HF_HUB_OFFLINE is set.\n"
        "  Name a folder that holds it: --tokenizer FOLDER, or tokenizer=FOLDER in Python"
    )


def test_another_tokenizer_can_be_named_for_our_own_model_too(tokenizer, tmp_path):
    VisionLanguageModel.from_pretrained(V01, tokenizer="bytes").save_pretrained(tmp_path / "ours")
    assert len(VisionLanguageModel.from_pretrained(tmp_path / "ours").text.tokenizer) == 257
    model = VisionLanguageModel.from_pretrained(tmp_path / "ours", tokenizer=str(tokenizer))
    assert len(model.text.tokenizer) == 300


def test_a_tokenizer_that_leaves_no_row_for_the_markers_is_refused(tmp_path):
    folder = write_tokenizer(tmp_path / "large", 301)
    with pytest.raises(ConfigError, match=r"has 305 tokens .*, the decoder's embedding only vocab_size=304"):
        _ = VisionLanguageModel.from_pretrained(MAIN, tokenizer=str(folder)).text


# What is said


def test_only_a_checkpoint_of_tiles_warns_that_they_are_not_cut(tmp_path):
    with pytest.warns(UserWarning, match=r"cuts a picture into tiles of 32 x 32 pixels, and here it is resized"):
        VisionLanguageModel.from_pretrained(MAIN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VisionLanguageModel.from_pretrained(V01)
        VisionLanguageModel.from_pretrained(copied(MAIN, tmp_path / "one tile", max_img_size=32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vit_cls_flag": True}, "cannot represent this nanoVLM's vit_cls_flag=True"),
        ({"vit_dropout": 0.1, "lm_dropout": 0.2}, "cannot represent this nanoVLM's vit_dropout=0.1, lm_dropout=0.2"),
        ({"lm_attn_scaling": 0.5}, "cannot represent this nanoVLM's lm_attn_scaling=0.5"),
        ({"lm_use_tokens": True}, "cannot represent this nanoVLM's lm_use_tokens=True"),
        ({"lm_rope_factor": 2.0}, "cannot represent this nanoVLM's lm_rope_factor=2.0 (unknown here)"),
        ({"vit_n_heads": None, "lm_re_base": None}, "config.json is nanoVLM's, but has no vit_n_heads, lm_re_base"),
        (
            {"mp_image_token_length": 9},
            "mp_image_token_length=9, but vit_img_size=32, vit_patch_size=8, mp_pixel_shuffle_factor=2 make 4",
        ),
        ({"lm_chat_template": None}, "has vlm_extra_tokens, but no lm_chat_template: of nanoVLM's formats only v0.1's"),
        ({"vlm_extra_tokens": {"image_token": "<|image|>"}}, "but no <|global_image|> among them: of nanoVLM's"),
        ({"vlm_extra_tokens": [], "lm_chat_template": ""}, "no lm_chat_template and no <|global_image|> among them"),
        ({"extra_token_amount": 1}, "but no <|global_image|> among them: of nanoVLM's"),
        ({"vit_n_blocks": "two"}, "vision_encoder.num_hidden_layers='two'"),
        ({"mp_pixel_shuffle_factor": 0}, "projector.factor=0"),
        ({"vit_patch_size": 0}, "vision_encoder.patch_size=0"),
    ],
    ids=str,
)
def test_what_cannot_be_represented_is_refused_by_name(changes, message, tmp_path):
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        VisionLanguageModel.from_pretrained(copied(MAIN, tmp_path / "other", **changes))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("MP.proj.weight"), r"missing \(1\):\n    projector\.linear\.weight"),
        (lambda t: t.update(other=torch.zeros(1)), r"unexpected \(1\):\n    other"),
        (
            lambda t: t.update({"vision_encoder.blocks.0.attn.qkv_proj.bias": torch.zeros(143)}),
            r"misshapen \(1\):\n    vision_encoder\.blocks\.0\.attention\.value\.bias \(47,\), the model has \(48,\)",
        ),
        (
            lambda t: t.update({"vision_encoder.patch_embedding.position_embedding": torch.zeros(2, 16, 48)}),
            r"misshapen \(1\):\n    vision_encoder\.position_embedding \(2, 16, 48\), the model has \(16, 48\)",
        ),
        (
            lambda t: t.update({"decoder.token_embedding.weight": torch.zeros(300, 64)}),
            "decoder.head.weight is not the embedding again, though config.json says lm_tie_weights: set it to false",
        ),
    ],
    ids=["missing", "unexpected", "qkv", "positions", "tied"],
)
def test_tensors_that_do_not_fit_are_listed(change, message, tmp_path):
    tensors = load_file(V01 / "model.safetensors")
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        VisionLanguageModel.from_pretrained(copied(V01, tmp_path / "other", tensors))


def test_a_folder_of_nanovlms_is_not_replaced(tmp_path, tokenizer):
    folder = copied(V01, tmp_path / "theirs")
    with pytest.raises(ConfigError, match=r"holds something else than a model, which would be lost"):
        VisionLanguageModel.from_pretrained(folder, tokenizer=str(tokenizer)).save_pretrained(folder)


# The commands


@both
def test_it_answers_from_the_command_line(folder, tokenizer, picture):
    question = ("generate", "--model", folder, "--image", picture, "--prompt", "What is this?", "--max-new-tokens", 4)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = nanovlm(*question, "--tokenizer", tokenizer, "--device", "cpu")
    model = VisionLanguageModel.from_pretrained(folder, tokenizer=str(tokenizer))
    assert done.status == 0
    assert done.out == model.generate("What is this?", [picture], 4) + "\n"
    assert done.err.startswith(f"nanovlm: {folder}: nanoVLM cuts" if folder == MAIN else "")
    assert done.err.count("\n") == (folder == MAIN)


def test_without_a_tokenizer_the_command_says_which_option_names_it(picture):
    done = nanovlm("generate", "--model", V01, "--image", picture, "--prompt", "What?", "--device", "cpu")
    assert done.status == 2
    assert "--tokenizer FOLDER" in done.err


@both
def test_it_is_scored_on_a_benchmark(folder, tokenizer):
    options = ("--benchmark", "shapes", "test_size=3", "image_size=16", "--no-controls", "--json", "--device", "cpu")
    done = nanovlm("evaluate", folder, *options, "--tokenizer", tokenizer)
    assert done.status == 0, done.err
    assert json.loads(done.out)["questions"] == 3
