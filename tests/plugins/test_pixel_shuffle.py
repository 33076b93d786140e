import pytest
import torch

from nanovlm import ConfigError, PatchGrid


@pytest.fixture
def build(registries):
    def build(height=4, width=4, dim=3, text_dim=8, **options):
        grid = PatchGrid(height, width, dim)
        return registries.projectors.build("pixel_shuffle", options, grid=grid, text_dim=text_dim)

    return build


def test_each_token_sees_its_own_block_only(build):
    patches = torch.zeros(1, 16, 3, requires_grad=True)
    build(factor=2)(patches)[0, 0].sum().backward()  # token 0: the top-left block
    assert patches.grad[0].any(dim=-1).nonzero().flatten().tolist() == [0, 1, 4, 5]


def test_factor_must_divide_the_grid(build):
    with pytest.raises(ConfigError, match="factor=3 must divide the 4 x 4 patch grid; 1, 2, 4 do"):
        build(factor=3)


def test_a_misspelt_option_names_the_right_one(build):
    with pytest.raises(ConfigError, match="Did you mean 'factor'"):
        build(facter=2)


def test_tokens_are_in_reading_order(build):
    projector = build(height=4, width=6, factor=2, dim=1, text_dim=4)
    torch.nn.init.eye_(projector.linear.weight)
    tokens = projector(torch.arange(24.0)[None, :, None])[0].int().tolist()
    assert tokens == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11], [12, 13, 18, 19], [14, 15, 20, 21], [16, 17, 22, 23]]


def test_a_blocks_channels_follow_patch_by_patch(build):
    """The order within a token: all channels of the top left patch, of the top right, of the bottom left, ..."""
    projector = build(factor=2, dim=3, text_dim=12)
    torch.nn.init.eye_(projector.linear.weight)
    patches = torch.arange(16)[:, None] * 10 + torch.arange(3)  # patch 5, channel 2: 52
    token = projector(patches[None].float())[0, 0].int().tolist()
    assert token == [0, 1, 2, 10, 11, 12, 40, 41, 42, 50, 51, 52]


@pytest.mark.parametrize(("side", "factor"), [(4, 1), (4, 2), (6, 3), (8, 4)])
def test_it_equals_the_connector_of_idefics3(build, side, factor):
    """With the same weights as they are: no reordering, so that the connectors of its family can be loaded."""
    from transformers import Idefics3Config
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

    text = {"model_type": "llama", "hidden_size": 20, "num_attention_heads": 2}
    config = Idefics3Config(vision_config={"hidden_size": 12}, text_config=text, scale_factor=factor)
    connector, projector = Idefics3Connector(config), build(side, side, 12, 20, factor=factor)
    connector.modality_projection.proj.load_state_dict(projector.linear.state_dict())
    patches = torch.randn(2, side * side, 12, generator=torch.Generator().manual_seed(0))
    assert projector.num_tokens == side * side // factor**2
    torch.testing.assert_close(projector(patches), connector(patches), rtol=1e-5, atol=1e-6)
