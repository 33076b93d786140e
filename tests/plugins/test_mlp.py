import torch

from nanovlm import PatchGrid


def test_it_equals_the_projector_of_llava(registries):
    from transformers import LlavaConfig
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    vision = {"model_type": "clip_vision_model", "hidden_size": 12, "num_attention_heads": 2}
    text = {"model_type": "llama", "hidden_size": 20, "num_attention_heads": 2}
    reference = LlavaMultiModalProjector(LlavaConfig(vision_config=vision, text_config=text))
    projector = registries.projectors.build("mlp", {}, grid=PatchGrid(3, 5, 12), text_dim=20)
    reference.linear_1.load_state_dict(projector.layers[0].state_dict())
    reference.linear_2.load_state_dict(projector.layers[2].state_dict())
    patches = torch.randn(2, 15, 12, generator=torch.Generator().manual_seed(0))
    assert projector.num_tokens == 15
    torch.testing.assert_close(projector(patches), reference(patches), rtol=1e-5, atol=1e-6)


def test_a_token_sees_its_own_patch_only(registries):
    projector = registries.projectors.build("mlp", {}, grid=PatchGrid(2, 2, 3), text_dim=8)
    patches = torch.randn(1, 4, 3, requires_grad=True)
    projector(patches)[0, 1].sum().backward()
    assert patches.grad[0].any(dim=-1).tolist() == [False, True, False, False]
