"""A projector or an encoder that does not give what it says is told of by name, before a run has a folder."""

import pytest
from command import nanovlm
from plugin_files import plugin
from tiny import QUICKSTART, tiny_model

from nanovlm import CheckpointError, PatchGrid

WRONG = {
    "too many": (
        plugin("odd").replace("self.num_tokens = 1", "self.num_tokens = 3"),
        "nanovlm: projector odd: gives image tokens (1, 1, 96), its num_tokens=3 promises (1, 3, 96); "
        "`nanovlm check odd` says more",
    ),
    "another width": (
        plugin("odd").replace("nn.Linear(grid.dim, text_dim)", "nn.Linear(grid.dim, 7)"),
        "nanovlm: projector odd: gives image tokens (1, 1, 7), its num_tokens=1 promises (1, 1, 96); "
        "`nanovlm check odd` says more",
    ),
    "none": (
        plugin("odd").replace("self.num_tokens = 1", "pass"),
        "nanovlm: projector: odd has no num_tokens: set self.num_tokens, the image tokens of a picture, in __init__; "
        "`nanovlm check odd` says what else a projector must do",
    ),
}


@pytest.mark.parametrize("command", ["plan", "train"])
@pytest.mark.parametrize(("source", "message"), WRONG.values(), ids=WRONG)
def test_a_projector_that_gives_something_else(source, message, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.py").write_text(source)
    done = nanovlm(command, QUICKSTART, "projector.name=odd", "--plugin", "odd.py", "device=cpu")
    assert (done.status, done.err.strip()) == (2, message)
    assert not (tmp_path / "runs").exists()


def test_an_encoder_that_gives_something_else():
    model = tiny_model()
    model.vision_encoder.grid = PatchGrid(3, 4, 16)
    with pytest.raises(CheckpointError) as caught:
        model.encode(model.vision_encoder.patch_embedding.weight.new_zeros(2, 3, 16, 16).byte())
    assert str(caught.value) == (
        "vision_encoder siglip: gives patches (2, 16, 16), its 3 x 4 grid promises (2, 12, 16): does it add prefix "
        "tokens or drop patches?"
    )
