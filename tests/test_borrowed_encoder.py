import pytest
import torch
from torch import Tensor, nn

from nanovlm import ConfigError
from nanovlm.borrowed_encoder import trial


class Encoder(nn.Module):
    """Patches of one pixel, beside a head that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, pictures: Tensor) -> Tensor:
        patches: Tensor = self.patches(pictures.flatten(2).transpose(1, 2))
        self.read(patches)
        return patches

    def read(self, patches: Tensor) -> None:
        self.head(input=patches)


class Fussy(Encoder):
    def read(self, patches: Tensor) -> None:
        assert self.head(patches).shape[-1] == 2, "two classes"


def test_what_the_patches_do_not_depend_on_is_taken_out():
    with torch.device("meta"):
        draft = Encoder()
        output, unused = trial("encoder", draft, 4, draft)
    assert output.shape == (2, 16, 8)
    assert unused == ("head.bias", "head.weight")
    assert [name for name, _ in draft.named_parameters()] == ["patches.weight", "patches.bias"]


def test_a_model_that_needs_what_its_patches_do_not_is_refused():
    with torch.device("meta"):
        draft = Fussy()
        message = "fussy does not run without the parameters that its patches do not depend on, such as head.bias: two"
        with pytest.raises(ConfigError, match=message):
            trial("fussy", draft, 4, draft)
