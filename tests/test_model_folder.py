import os

import pytest
from tiny import tiny_model

from nanovlm import ConfigError, VisionLanguageModel
from nanovlm.model_folder import replaced


def listing(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_is_written_takes_the_place_of_the_model_that_was_there(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    with replaced(f"{tmp_path}/model/") as part:  # with a slash at its end
        assert part.parent == tmp_path
        (part / "new.txt").write_text("new")
        assert (tmp_path / "model" / "config.json").is_file()  # until the new one is whole
    assert listing(tmp_path) == ["model", "model/new.txt"]


def test_what_fails_on_the_way_leaves_the_old_model_as_it_was(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    before = listing(tmp_path)
    with pytest.raises(OSError, match="disk full"), replaced(tmp_path / "model") as part:
        (part / "half.txt").write_text("half")
        raise OSError("disk full")
    assert listing(tmp_path) == before
    VisionLanguageModel.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("name", [".", "keep", "keep/", "a_file", "other_model"])
def test_what_is_no_model_is_not_replaced(tmp_path, monkeypatch, name):
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "precious.txt").write_text("mine")
    (tmp_path / "other_model").mkdir()
    (tmp_path / "other_model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "a_file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    with pytest.raises(ConfigError, match=r"holds something else than a model, which would be lost: name a new"):
        tiny_model().save_pretrained(name)
    assert listing(tmp_path) == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    tiny_model().save_pretrained(tmp_path / "empty")
    assert {"config.json", "model.safetensors"} <= set(os.listdir(tmp_path / "empty"))
