import pytest
import torch
import torch.nn.functional as F

from nanovlm import ConfigError, PatchGrid


@pytest.fixture
def build(registries):
    def build(height=4, width=4, dim=3, text_dim=8, **options):
        grid = PatchGrid(height, width, dim)
        return registries.projectors.build("average_pool", options, grid=grid, text_dim=text_dim)

    return build


@pytest.mark.parametrize(("height", "width", "factor"), [(4, 4, 1), (4, 4, 2), (6, 3, 3), (8, 4, 4)])
def test_it_equals_torchs_own_pooling(build, height, width, factor):
    projector = build(height, width, factor=factor)
    patches = torch.randn(2, height * width, 3, generator=torch.Generator().manual_seed(0))
    picture = patches.transpose(1, 2).unflatten(2, (height, width))  # (B, C, H, W)
    pooled = F.avg_pool2d(picture, factor).flatten(2).transpose(1, 2)
    assert projector.num_tokens == pooled.shape[1]
    torch.testing.assert_close(projector(patches), pooled @ projector.linear.weight.T, rtol=1e-5, atol=1e-6)


def test_it_has_as_many_tokens_as_pixel_shuffle_and_fewer_weights(build, registries):
    shuffle = registries.projectors.build("pixel_shuffle", {}, grid=PatchGrid(4, 4, 3), text_dim=8)
    pool = build()
    assert pool.num_tokens == shuffle.num_tokens
    assert pool.linear.weight.numel() * 2**2 == shuffle.linear.weight.numel()


def test_factor_must_divide_the_grid(build):
    with pytest.raises(ConfigError, match="factor=4 must divide the 27 x 27 patch grid; 1, 3, 9, 27 do"):
        build(27, 27, factor=4)
