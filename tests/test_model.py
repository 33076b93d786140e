import pytest
import torch
import torch.nn.functional as F
from tiny import example, model_of, random_pixels, tiny_model, tiny_recipe

from nanovlm import CheckpointError, ConfigError, PatchGrid, Segments, Turn, VisionLanguageModel
from nanovlm.data.packing import Example, PackedRow, pack, pack_row

MODELS = {
    "quickstart": (),
    "more image tokens": ("projector.factor=1",),
    "one image token": ("projector.factor=4", "language_decoder.tie_word_embeddings=false"),
}


def conversations(model: VisionLanguageModel) -> list[Example]:
    """Samples with no picture, one, several, and pictures between the words of several turns."""
    return [
        example(model, [Turn("Say something.", "No.")]),
        example(model, [Turn("What is this?", "A cat on a mat.")], 1, seed=1),
        example(model, [Turn("Which is larger?", "the second")], 3, seed=2),
        example(model, [Turn("a <image> or b <image>?", "b"), Turn("and <image>", "neither, I think")], 3, seed=3),
        example(model, [Turn("?", "!")]),
        example(model, [Turn("<image><image>", "two"), Turn("Sure?", "Yes")], 2, seed=4),
    ]


def losses_by_sample(model: VisionLanguageModel, row: PackedRow) -> list[torch.Tensor]:
    sample = row.segments.sample_ids[row.target_slots]
    losses = model.losses(row)
    return [losses[sample == s] for s in range(row.num_samples)]


def by_hand(model: VisionLanguageModel, one: Example) -> torch.Tensor:
    """The losses of one sample the plain way: pieces of text and pictures joined, then a shifted cross entropy."""
    decoder, tokens = model.language_decoder, one.tokens
    images = model.projector(model.vision_encoder(one.pixels)) if len(one.pixels) else []
    pieces, targets, start = [], [], 0
    for image, at in zip([*images, None], [*tokens.image_at, len(tokens.ids)], strict=True):
        pieces.append(decoder.embed(torch.tensor(tokens.ids[start:at], dtype=torch.int64)))
        targets += [i if s else None for i, s in zip(tokens.ids[start:at], tokens.supervised[start:at], strict=True)]
        if image is not None:
            pieces.append(image)
            targets += [None] * len(image)
        start = at
    x = torch.cat(pieces)
    logits = decoder.logits(decoder(x, Segments.of([len(x)])))
    before = [(t - 1, target) for t, target in enumerate(targets) if target is not None]
    positions, target_ids = zip(*before, strict=True)
    return F.cross_entropy(logits[list(positions)], torch.tensor(target_ids), reduction="none")


@pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_packed_equals_separate(overrides):
    model = tiny_model(*overrides)
    samples = conversations(model)
    packed = pack_row(samples, model.num_image_tokens)
    hidden = model.hidden(packed).split([*packed.segments.cu_seqlens.diff()])
    losses = losses_by_sample(model, packed)
    for s, sample in enumerate(samples):
        alone = pack_row([sample], model.num_image_tokens)
        logits, reference = (model.language_decoder.logits(x) for x in (hidden[s], model.hidden(alone)))
        torch.testing.assert_close(logits, reference, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(losses[s], model.losses(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_losses_equal_those_worked_out_by_hand(overrides):
    model = tiny_model(*overrides)
    samples = conversations(model)
    losses = losses_by_sample(model, pack_row(samples, model.num_image_tokens))
    for mine, sample in zip(losses, samples, strict=True):
        torch.testing.assert_close(mine, by_hand(model, sample), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("tokens_per_row", "images_per_row"), [(1, 256), (80, 256), (150, 256), (8192, 3)])
def test_loss_and_gradient_do_not_depend_on_the_split_into_rows(tokens_per_row, images_per_row):
    model = tiny_model().double()
    samples = conversations(model)

    def loss_and_gradient(rows: list[PackedRow]) -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        losses = [model(row) / sum(row.num_targets for row in rows) for row in rows]
        for loss in losses:
            loss.backward()
        return float(sum(losses).detach()), [parameter.grad.clone() for parameter in model.parameters()]

    rows = pack(samples, model.num_image_tokens, tokens_per_row, images_per_row)
    assert len(rows) > 1
    loss, gradient = loss_and_gradient(rows)
    one_loss, one_gradient = loss_and_gradient([pack_row(samples, model.num_image_tokens)])
    assert loss == pytest.approx(one_loss, rel=1e-6)  # the loss itself is float32
    torch.testing.assert_close(gradient, one_gradient, rtol=1e-5, atol=1e-7)


def test_a_sample_is_blind_to_its_neighbours_pictures():
    model = tiny_model()
    samples = conversations(model)
    other = [Example(s.tokens, 255 - s.pixels) if i == 2 else s for i, s in enumerate(samples)]
    before, after = (losses_by_sample(model, pack_row(row, model.num_image_tokens)) for row in (samples, other))
    changed = [not a.equal(b) for a, b in zip(before, after, strict=True)]
    assert changed == [i == 2 for i in range(len(samples))]


@pytest.mark.parametrize("override", ["projector.factor=1", "projector.factor=4"])
def test_another_projector_leaves_the_other_initial_weights_as_they_were(override):
    model, other = tiny_model(seed=3), tiny_model(override, seed=3)
    assert model.projector.linear.weight.shape != other.projector.linear.weight.shape
    for role in ("vision_encoder", "language_decoder"):
        torch.testing.assert_close(getattr(model, role).state_dict(), getattr(other, role).state_dict(), rtol=0, atol=0)


def test_initial_weights_are_the_seeds():
    first, again, other = (tiny_model(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(first[name].equal(again[name]) for name in first)
    drawn = [name for name in first if first[name].unique().numel() > 1]  # a norm begins as ones
    assert drawn
    assert not any(first[name].equal(other[name]) for name in drawn)


def test_building_leaves_the_callers_randomness_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    tiny_model(seed=1)
    assert torch.get_rng_state().equal(before)


def test_a_model_is_built_on_meta_without_any_memory():
    with torch.device("meta"):
        model = VisionLanguageModel(tiny_recipe().blueprint)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert model.num_image_tokens == 4


def test_the_baseline_has_as_many_parameters_as_nanovlms():
    encoder = {"name": "siglip", "weights": "google/siglip-base-patch16-224"}
    with torch.device("meta"):
        model = model_of(encoder, {"name": "smollm2", "weights": "HuggingFaceTB/SmolLM2-135M"})
    assert sum(parameter.numel() for parameter in model.parameters()) == 222_081_600
    assert model.num_image_tokens == 49


def test_an_encoder_that_adds_a_token_is_told_so():
    model = tiny_model()
    model.vision_encoder.grid = PatchGrid(4, 3, 16)
    with pytest.raises(
        CheckpointError, match=r"siglip: gives patches \(2, 16, 16\).* 4 x 3 grid promises \(2, 12, 16\)"
    ):
        model.encode(random_pixels(2))


def test_an_error_in_a_component_says_where_in_the_experiment():
    with pytest.raises(ConfigError, match=r"^projector: factor=3 must divide the 4 x 4 patch grid; 1, 2, 4 do$"):
        tiny_model("projector.factor=3")


def test_generate_takes_any_kind_of_picture(tmp_path):
    from PIL import Image

    model = tiny_model()
    picture = Image.new("RGB", (20, 30), "red")
    picture.save(tmp_path / "red.png")
    answers = [
        model.generate("What?", [source], max_new_tokens=5)
        for source in (picture, tmp_path / "red.png", (tmp_path / "red.png").read_bytes())
    ]
    assert len(set(answers)) == 1
