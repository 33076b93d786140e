"""``nanovlm export`` on the command line."""

import json

import pytest
from command import nanovlm
from exporting import IDEFICS3, LORA, stirred
from safetensors.torch import load_file
from tiny import tiny_model
from versions import older

from nanovlm import VisionLanguageModel


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model where a run has it."""
    folder = tmp_path_factory.mktemp("run")
    stirred(*IDEFICS3, LORA).save_pretrained(folder / "model")
    return folder


def ask(folder):
    done = nanovlm("generate", "--model", folder, "--prompt", "What is this?", "--max-new-tokens", 8, "--device", "cpu")
    assert done.status == 0, done.err
    return done.out


def test_a_run_is_exported_to_transformers_and_asked_there(model, tmp_path):
    done = nanovlm("export", model, "--to", "transformers", tmp_path / "out")
    assert done.status == 0, done.err
    assert done.out.splitlines()[0] == f"{tmp_path / 'out'}: an Idefics3ForConditionalGeneration with its processor"
    agrees = "  its processor gives the model the same ids and pixels as nanovlm" in done.out.splitlines()
    assert agrees or older("transformers", than="5.24")  # which rounds pixels otherwise
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "idefics3"
    assert ask(tmp_path / "out") == ask(model)


def test_a_run_is_exported_to_a_plain_folder(model, tmp_path):
    done = nanovlm("export", model, "--to", "folder", tmp_path / "out", "--dtype", "bf16")
    assert done.status == 0, done.err
    assert done.out.startswith(f"{tmp_path / 'out'}: a model folder in bf16")
    assert {str(tensor.dtype) for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {
        "torch.bfloat16"
    }
    assert VisionLanguageModel.from_pretrained(tmp_path / "out").blueprint.language_decoder.config.lora is None


def test_from_transformers_a_plain_folder_is_made_again(model, tmp_path):
    assert nanovlm("export", model, "--to", "transformers", tmp_path / "there").status == 0
    assert nanovlm("export", tmp_path / "there", "--to", "folder", tmp_path / "back").status == 0
    assert nanovlm("export", model, "--to", "folder", tmp_path / "direct").status == 0
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "direct" / name).read_bytes()


def test_for_the_hub_a_dry_run_lists_the_files(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the card is written
    done = nanovlm("export", model, "--to", "hub", "someone/model", "--dry-run")
    assert done.status == 0, done.err
    assert "nothing uploaded" in done.out and "model.safetensors" in done.out
    half = nanovlm("export", model, "--to", "hub", "someone/model", "--dry-run", "--dtype", "bf16")
    assert half.status == 0, half.err
    sizes = [int(next(line for line in out.splitlines() if "model.safetensors" in line).split()[1].replace(",", ""))
             for out in (done.out, half.out)]  # fmt: skip
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize("option", ["--public", "--dry-run"])
def test_options_of_the_hub_are_not_for_folders(model, tmp_path, option):
    done = nanovlm("export", model, "--to", "folder", tmp_path / "out", option)
    assert (done.status, done.err) == (2, f"nanovlm: {option} is for --to hub\n")


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    done = nanovlm("export", tmp_path / "empty", "--to", "folder", tmp_path / "out")
    assert done.status == 2
    assert "has no config.json: is it a model folder?" in done.err


def test_a_component_that_transformers_lacks_is_named(tmp_path):
    tiny_model("projector=mlp").save_pretrained(tmp_path / "model")
    done = nanovlm("export", tmp_path / "model", "--to", "transformers", tmp_path / "out")
    assert done.status == 2
    assert "projector mlp cannot be expressed in transformers' Idefics3; what can is pixel_shuffle" in done.err
