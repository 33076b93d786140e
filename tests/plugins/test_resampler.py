from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from nanovlm import ConfigError, PatchGrid

OPTIONS = {"num_queries": 5, "num_layers": 2, "num_heads": 3, "head_dim": 4}


@pytest.fixture
def build(registries):
    def build(height=4, width=4, dim=12, text_dim=8, **options):
        grid = PatchGrid(height, width, dim)
        torch.manual_seed(0)
        return registries.projectors.build("resampler", OPTIONS | options, grid=grid, text_dim=text_dim)

    return build


def random_patches(count: int = 16, dim: int = 12) -> torch.Tensor:
    return torch.randn(2, count, dim, generator=torch.Generator().manual_seed(0))


# Our names, and those of Idefics.
RENAMED = {
    "queries": "latents",
    "layers.{i}.attention.norm.": "blocks.{i}.0.latents_layer_norm.",
    "layers.{i}.attention.patch_norm.": "blocks.{i}.0.context_layer_norm.",
    "layers.{i}.attention.query.": "blocks.{i}.0.q_proj.",
    "layers.{i}.attention.key.": "blocks.{i}.0.k_proj.",
    "layers.{i}.attention.value.": "blocks.{i}.0.v_proj.",
    "layers.{i}.attention.output.": "blocks.{i}.0.output_proj.",
    "layers.{i}.mlp.0.": "blocks.{i}.1.ln.",
    "layers.{i}.mlp.1.": "blocks.{i}.1.fc.",
    "layers.{i}.mlp.3.": "blocks.{i}.1.c_proj.",
    "norm.": "layer_norm.",
}


def as_idefics(projector: torch.nn.Module) -> dict[str, torch.Tensor]:
    names = {ours.format(i=i): theirs.format(i=i) for ours, theirs in RENAMED.items() for i in range(2)}
    return {
        theirs + name.removeprefix(ours): tensor
        for name, tensor in projector.state_dict().items()
        for ours, theirs in names.items()
        if name.startswith(ours)
    }


def test_it_equals_the_resampler_of_idefics(build):
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

    config = SimpleNamespace(
        perceiver_config=SimpleNamespace(qk_layer_norms_perceiver=False), vision_config=SimpleNamespace(embed_dim=12)
    )
    projector = build()
    for parameter in projector.parameters():  # norms too
        torch.nn.init.normal_(parameter, std=0.5)
    reference = IdeficsPerceiverResampler(config, embed_dim=12, depth=2, n_heads=3, head_dim=4, n_latents=5)
    reference.load_state_dict(as_idefics(projector))
    patches = random_patches()
    expected = reference(patches) @ projector.linear.weight.T  # Idefics leaves this to its language model
    torch.testing.assert_close(projector(patches), expected, rtol=1e-5, atol=1e-6)


def test_its_attention_equals_torchs_own(build):
    attention, patches = build().layers[0].attention, random_patches()
    queries = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
    reference = torch.nn.MultiheadAttention(12, 3, bias=False, batch_first=True)
    reference.in_proj_weight.data = torch.cat(
        [part.weight for part in (attention.query, attention.key, attention.value)]
    )
    reference.out_proj.weight.data = attention.output.weight
    q, context = F.layer_norm(queries, [12]), F.layer_norm(patches, [12])  # a new norm has weights of one
    seen = torch.cat((context, q), dim=1)
    torch.testing.assert_close(attention(queries, patches), reference(q, seen, seen)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (27, 27), (6, 3)])
def test_the_number_of_tokens_is_that_of_the_queries(build, height, width):
    projector = build(height, width, num_queries=7)
    assert projector.num_tokens == 7
    assert projector(random_patches(height * width)).shape == (2, 7, 8)


def test_every_query_asks_for_something_else(build):
    tokens = build()(random_patches())[0]
    assert torch.cdist(tokens, tokens).add(torch.eye(5) * 9).min() > 1e-2


def test_a_misspelt_option_names_the_right_one(build):
    with pytest.raises(ConfigError, match="Did you mean 'num_queries'"):
        build(num_query=3)
