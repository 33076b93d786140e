"""What every component must do, whoever wrote it: a new plugin is tested here without a line being added."""

import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from tiny import random_pixels

from nanovlm import Benchmark, ConfigError, PatchGrid, Sample, Segments, SkipSample, Tracker, load_plugins
from nanovlm.data.conversation import load_text_format
from nanovlm.data.images import open_image
from nanovlm.seeding import seeded
from nanovlm.training.run import Run
from nanovlm.yaml_reader import dump_yaml, parse_yaml

REGISTRIES = load_plugins()
GRIDS = [PatchGrid(4, 4, 16), PatchGrid(8, 8, 12), PatchGrid(16, 16, 8), PatchGrid(6, 4, 5)]
LENGTHS = [7, 1, 20, 3]


def every(*registries):
    entries = [entry for registry in registries for entry in registry]
    return pytest.mark.parametrize("entry", entries, ids=[f"{entry.plugin.module}:{entry.name}" for entry in entries])


every_encoder, every_projector = every(REGISTRIES.vision_encoders), every(REGISTRIES.projectors)
every_decoder, every_dataset = every(REGISTRIES.language_decoders), every(REGISTRIES.datasets)


def build(entry, seed: int = 0, **context):
    with seeded(seed, entry.name):
        return entry.cls(entry.cls.Config.tiny(), **context)


def build_on(grid: PatchGrid, entry):
    """A projector for this grid, or None if it says that the grid does not suit it."""
    try:
        return build(entry, grid=grid, text_dim=24)
    except ConfigError:
        return None


def random_patches(grid: PatchGrid, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, grid.height * grid.width, grid.dim, generator=generator)


def random_ids(decoder) -> torch.Tensor:
    return torch.randint(200, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))


def assert_all_learn(module: torch.nn.Module, output: torch.Tensor) -> None:
    """Every parameter that is to be trained gets a gradient, a finite one."""
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in parameters.items() if parameter.grad is None] == []
    assert [name for name, parameter in parameters.items() if not parameter.grad.isfinite().all()] == []


@pytest.mark.parametrize("plugin", REGISTRIES.plugins, ids=lambda plugin: plugin.module)
def test_a_default_plugin_loads(plugin):
    assert plugin.error == ""


@every(*REGISTRIES)
def test_options_survive_the_run_folder(entry):
    """What a run writes into its experiment.yaml is read back as it was."""
    config = entry.cls.Config.tiny()
    assert entry.cls.Config.model_validate(parse_yaml(dump_yaml(config.model_dump()), "here")) == config
    assert config.resolved().resolved() == config.resolved()


@every(REGISTRIES.vision_encoders, REGISTRIES.language_decoders)
def test_weights_are_the_seeds_alone(entry):
    before = torch.get_rng_state()
    first, again, other = (build(entry, seed).state_dict() for seed in (0, 0, 1))
    assert torch.get_rng_state().equal(before)
    assert all(first[name].equal(again[name]) for name in first)
    assert any(not first[name].equal(other[name]) for name in first)


@every(REGISTRIES.vision_encoders, REGISTRIES.language_decoders)
def test_it_is_built_on_meta(entry):
    with torch.device("meta"):
        planned = build(entry)
    real = build(entry)
    assert all(tensor.is_meta for tensor in planned.state_dict().values())
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (planned, real)]
    assert shapes[0] == shapes[1]


@every(REGISTRIES.vision_encoders, REGISTRIES.language_decoders)
def test_its_blocks_are_parts_of_it(entry):
    model = build(entry)
    in_blocks = {id(parameter) for block in model.blocks for parameter in block.parameters()}
    assert in_blocks
    assert in_blocks <= {id(parameter) for parameter in model.parameters()}


@every_encoder
def test_an_encoder_gives_what_its_grid_promises(entry):
    encoder = build(entry)
    patches = encoder(random_pixels(3, encoder.image.size))
    assert patches.shape == (3, encoder.grid.height * encoder.grid.width, encoder.grid.dim)
    assert patches.dtype == torch.float32
    assert_all_learn(encoder, patches)


@every_encoder
@torch.no_grad()
def test_an_encoder_sees_each_picture_by_itself(entry):
    encoder = build(entry).eval()
    pixels = random_pixels(3, encoder.image.size)
    together = encoder(pixels)
    for i in range(3):
        torch.testing.assert_close(together[i], encoder(pixels[i : i + 1])[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


@every_encoder
@torch.no_grad()
def test_patches_are_in_reading_order(entry):
    """Changing the pixels of one patch changes that patch most."""
    encoder = build(entry).eval()
    grid, size = encoder.grid, encoder.image.size
    pixels = random_pixels(1, size)
    plain = encoder(pixels)[0]
    for row, column in ((0, 0), (0, grid.width - 1), (grid.height - 1, 0), (1, 2)):
        changed = pixels.clone()
        height, width = size // grid.height, size // grid.width
        changed[..., row * height : (row + 1) * height, column * width : (column + 1) * width] ^= 255
        difference = (encoder(changed)[0] - plain).norm(dim=-1)
        assert int(difference.argmax()) == row * grid.width + column


@every_projector
def test_a_projector_gives_as_many_tokens_as_it_says(entry):
    suited = [(grid, projector) for grid in GRIDS if (projector := build_on(grid, entry))]
    assert GRIDS[0] in [grid for grid, _ in suited]
    for grid, projector in suited:
        with torch.device("meta"):
            planned = build_on(grid, entry)
        tokens = projector(random_patches(grid))
        assert tokens.shape == (2, projector.num_tokens, 24)
        assert planned.num_tokens == projector.num_tokens
        assert_all_learn(projector, tokens)


@every_projector
def test_a_projector_sees_each_picture_by_itself(entry):
    projector = build(entry, grid=GRIDS[0], text_dim=24).eval()
    patches = random_patches(GRIDS[0], 3).requires_grad_()
    projector(patches)[1].pow(2).sum().backward()
    assert patches.grad[1].any()
    assert not patches.grad[[0, 2]].any()


@every_decoder
def test_a_decoder_has_the_shapes_it_says(entry):
    decoder, segments = build(entry), Segments.of(LENGTHS)
    x = decoder.embed(random_ids(decoder))
    hidden = decoder(x, segments)
    logits = decoder.logits(hidden)
    assert x.shape == hidden.shape == (sum(LENGTHS), decoder.dim)
    assert logits.shape == (sum(LENGTHS), decoder.config.vocab_size)
    assert decoder.max_positions >= sum(LENGTHS)
    assert_all_learn(decoder, logits)


@every_decoder
@torch.no_grad()
def test_packed_equals_separate(entry):
    decoder = build(entry).eval()
    ids = random_ids(decoder)
    packed = decoder.logits(decoder(decoder.embed(ids), Segments.of(LENGTHS)))
    for part, alone in zip(packed.split(LENGTHS), ids.split(LENGTHS), strict=True):
        expected = decoder.logits(decoder(decoder.embed(alone), Segments.of([len(alone)])))
        torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-5)


@every_decoder
def test_a_token_sees_what_came_before_it_only(entry):
    decoder = build(entry).eval()
    x = decoder.embed(random_ids(decoder)).detach().requires_grad_()
    decoder(x, Segments.of(LENGTHS))[15].pow(2).sum().backward()  # the eighth token of the third sample
    seen = x.grad.any(dim=-1).nonzero().flatten().tolist()
    assert seen == list(range(8, 16))


@every_decoder
@torch.no_grad()
def test_a_cache_changes_nothing(entry):
    decoder = build(entry).eval()
    ids = random_ids(decoder).split(LENGTHS)
    more = torch.randint(200, (3, len(LENGTHS)), generator=torch.Generator().manual_seed(2))  # three steps
    cache = decoder.new_cache(len(LENGTHS), max(LENGTHS) + 3)
    segments = Segments.of(LENGTHS)
    hidden = decoder(decoder.embed(torch.cat(ids)), segments, cache)[segments.last]
    for step in range(4):
        for s, own in enumerate(ids):
            whole = torch.cat((own, more[:step, s]))
            expected = decoder(decoder.embed(whole), Segments.of([len(whole)]))[-1]
            torch.testing.assert_close(hidden[s], expected, rtol=1e-5, atol=1e-5)
        if step < 3:
            hidden = decoder(decoder.embed(more[step]), cache.next(), cache)


@every_decoder
def test_a_decoder_knows_its_text(entry):
    config = entry.cls.Config.tiny()
    text = load_text_format(config, config.vocab_size)
    prompt = text.prompt("What is this?", 0)
    assert max(prompt.ids) < config.vocab_size
    assert "What is this?" in text.tokenizer.decode(prompt.ids)


def members_of(dataset) -> list[tuple[str, Callable[[], Sample]]]:
    """Each sample's id, and what reads it: of a stream, from its row."""
    if dataset.streaming:
        return [(row.id, partial(dataset.sample, row)) for row in dataset.stream()]
    return [(dataset.id(i), partial(dataset.__getitem__, i)) for i in range(len(dataset))]


def samples_of(dataset) -> list[Sample]:
    samples = []
    for _, read in members_of(dataset):
        try:
            samples.append(read())
        except SkipSample:
            continue
    return samples


def content(sample: Sample) -> tuple[object, ...]:
    pictures = [(open_image(image).size, open_image(image).tobytes()) for image in sample.images]
    return sample.id, sample.turns, sample.choices, sample.category, pictures


def open_splits(entry) -> dict:
    return {split: entry.cls(entry.cls.Config.tiny(), split) for split in ("train", "test")}


@every_dataset
def test_a_dataset_has_samples_that_can_be_used(entry):
    splits = open_splits(entry)
    samples = [sample for dataset in splits.values() for sample in samples_of(dataset)]
    assert samples
    for sample in samples:
        assert sample.turns
        assert all(open_image(image) for image in sample.images)
        assert all(turn.assistant.strip() for turn in sample.turns)


@every_dataset
def test_an_id_is_known_without_reading_the_sample(entry):
    for dataset in open_splits(entry).values():
        ids = [known for known, _ in members_of(dataset)]
        assert len(set(ids)) == len(ids)
        assert {sample.id for sample in samples_of(dataset)} <= set(ids)
        assert all(read().id == known for known, read in members_of(dataset))


@every_dataset
def test_train_and_test_have_no_id_in_common(entry):
    train, test = ({known for known, _ in members_of(dataset)} for dataset in open_splits(entry).values())
    assert not train & test


@every_dataset
def test_samples_are_always_the_same(entry):
    for dataset, other in zip(open_splits(entry).values(), open_splits(entry).values(), strict=True):
        forwards = [content(read()) for _, read in members_of(dataset)]
        backwards = [content(read()) for _, read in reversed(members_of(other))]
        assert forwards == backwards[::-1]


@every_dataset
def test_a_dataset_travels_to_a_worker(entry):
    for dataset in open_splits(entry).values():
        travelled = pickle.loads(pickle.dumps(dataset))
        assert [content(s) for s in samples_of(travelled)] == [content(s) for s in samples_of(dataset)]


@every([entry for entry in REGISTRIES.datasets if issubclass(entry.cls, Benchmark)])
def test_a_benchmark_knows_right_from_wrong(entry):
    dataset = open_splits(entry)["test"]
    assert len(dataset)
    assert dataset.max_new_tokens > 0
    for sample in samples_of(dataset):
        assert dataset.prompt(sample).strip()
        assert dataset.score(dataset.answer(sample), sample) == 1
        assert dataset.score("no such answer", sample) == 0
        assert dataset.score("", sample) == 0


@every(REGISTRIES.trackers)
def test_a_tracker_is_built_for_a_run(entry, tmp_path):
    tracker = entry.cls(entry.cls.Config.tiny(), Run(tmp_path, "tiny"))
    assert isinstance(tracker, Tracker)
    assert tracker.run.folder == tmp_path
