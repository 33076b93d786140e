from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_recipe
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanovlm import ConfigError, load_experiment, load_plugins
from nanovlm.blueprint import Recipe
from nanovlm.data.conversation import Tokens
from nanovlm.data.packing import Example, pack_row
from nanovlm.flops import count_flops
from nanovlm.planning import Download, Plan, kept_bytes, plan

ROOT = Path(__file__).parents[1]
MILLION = 10**6


@cache
def planned(name: str, *overrides: str) -> Plan:
    return plan(Recipe.of(load_experiment(f"{ROOT}/experiments/{name}.yaml", overrides), load_plugins()))


@cache
def tiny_plan(*overrides: str) -> Plan:
    return plan(tiny_recipe(*overrides))


def full_row(model, samples: int = 3, text_tokens: int = 40):
    size = model.vision_encoder.image.size
    tokens = Tokens([7] * text_tokens, [True] * text_tokens, [0])
    pixels = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    return pack_row([Example(tokens, pixels)] * samples, model.num_image_tokens)


def test_the_baseline_is_planned_offline():
    baseline = planned("baseline")
    expected = {"vision_encoder": 85_797_120, "projector": 1_769_472, "language_decoder": 134_515_008}
    assert baseline.parameters == expected
    assert baseline.total_parameters == baseline.trained_parameters == 222_081_600
    assert (baseline.image_tokens, baseline.longest_sample) == (49, 128)


def baseline_by_hand() -> float:
    """A multiplication and an addition are two; the backward pass takes twice the forward pass."""
    patches, width, hidden, layers = 196, 768, 3072, 12
    patch_embedding = 2 * patches * (16 * 16 * 3) * width
    encoder = layers * patches * (2 * (4 * width**2 + 2 * width * hidden) + 4 * patches * width)
    projector = 2 * 49 * (4 * width) * 576
    decoder = 30 * 128 * (2 * (2 * 576**2 + 2 * 576 * 192 + 3 * 576 * 1536) + 4 * 128 * 576)
    head = 2 * 78 * 576 * 49_152  # the first of the 79 text tokens is no target
    return 3 * (encoder + projector + decoder + head) + 2 * patch_embedding  # pixels need no gradient


def test_the_baselines_flops_are_those_counted_by_hand():
    assert planned("baseline").flops_per_sample == pytest.approx(baseline_by_hand(), rel=0.01)


def test_the_head_runs_at_targets_only():
    """nanoVLM's own loop runs it on all 128 positions: 212 GFLOP a sample."""
    whole = planned("baseline").flops_per_sample + 3 * 2 * (128 - 78) * 576 * 49_152
    assert whole == pytest.approx(212e9, rel=0.005)


def test_a_frozen_encoder_takes_no_backward_pass():
    row = full_row(tiny_model())
    flops = {}
    for frozen in (False, True):
        overrides = ["training.learning_rate.vision_encoder=0"] if frozen else []
        with torch.device("meta"):
            model = tiny_model(*overrides)
        model.train_only(tiny_recipe(*overrides).experiment.training.trained_roles)
        flops[frozen] = count_flops(model, row)
    patches = 16 * len(row.pixels)
    layer = 2 * patches * (4 * 16**2 + 2 * 16 * 32) + 4 * patches * 16 * 16  # forward
    patch_embedding = 2 * patches * 48 * 16
    projector = 2 * (patches // 4) * (4 * 16) * 24  # the gradient of its input
    assert flops[False] - flops[True] == 2 * 2 * layer + patch_embedding + projector


def really_kept(model, row, precision: str) -> int:
    """Bytes of the tensors that a real forward pass keeps, each storage once."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    sizes, alive = {}, []

    def keep(tensor):
        alive.append(tensor)  # or its memory, and so its address, may be used again
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(row)
    return sum(sizes.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen encoder"])
def test_what_is_kept_for_the_backward_pass_is_what_a_real_one_keeps(precision, frozen):
    recipe = tiny_recipe(*(["training.learning_rate.vision_encoder=0"] if frozen else []))
    model = tiny_model()
    model.train_only(recipe.experiment.training.trained_roles)
    row = full_row(model)
    measured = really_kept(model, row, precision)
    assert kept_bytes(model, row, precision) == pytest.approx(measured, rel=0.01)


def test_memory_is_weights_and_optimizer_and_one_full_row():
    one, two = (tiny_plan("training.tokens_per_row=83", f"training.images_per_row={n}") for n in (1, 2))
    assert one.longest_sample == 83  # 79 text tokens, 4 image tokens
    assert one.memory_bytes == two.memory_bytes > 16 * one.total_parameters  # only one sample fits such a row
    rows = [tiny_plan(f"training.tokens_per_row={83 * n}", "training.precision=fp32").memory_bytes for n in (1, 2, 3)]
    assert rows[1] - rows[0] == pytest.approx(rows[2] - rows[1], rel=0.01)


def test_memory_is_bounded_by_the_pictures_and_samples_of_a_row():
    free = tiny_plan("training.tokens_per_row=8192")
    assert tiny_plan("training.tokens_per_row=8192", "training.images_per_row=2").memory_bytes < free.memory_bytes
    assert tiny_plan("training.tokens_per_row=8192", "training.samples_per_step=2").memory_bytes < free.memory_bytes


@pytest.mark.parametrize("role", ["vision_encoder", "projector", "language_decoder"])
def test_a_frozen_component_needs_less_memory(role):
    whole, frozen = tiny_plan(), tiny_plan(f"training.learning_rate.{role}=0")
    assert frozen.parameters == whole.parameters
    assert whole.trained_parameters - frozen.trained_parameters == whole.parameters[role]
    assert whole.memory_bytes - frozen.memory_bytes >= 12 * whole.parameters[role]


def test_half_precision_needs_less_memory_than_full():
    full, half = planned("baseline", "training.precision=fp32"), planned("baseline")
    weights = 16 * full.total_parameters
    assert 0.4 < (half.memory_bytes - weights) / (full.memory_bytes - weights) < 0.8


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16", "fp32"])
def test_memory_is_for_the_experiments_precision(precision):
    """What `auto` will be is up to a device that need not be here: it is planned as on most GPUs."""
    tiny = tiny_plan(f"training.precision={precision}")
    assert tiny.precision == ("bf16" if precision == "auto" else precision)
    assert (tiny.memory_bytes == tiny_plan("training.precision=bf16").memory_bytes) == (precision != "fp32")


def test_what_would_be_downloaded_is_named():
    assert [(each.where, each.source, each.size) for each in planned("baseline").downloads] == [
        ("vision_encoder.weights", "google/siglip-base-patch16-224", "up to 813 MB"),
        ("language_decoder.weights", "HuggingFaceTB/SmolLM2-135M", "up to 269 MB"),
        ("data.train.0.source", "HuggingFaceM4/the_cauldron", "up to 169 GB"),
        ("benchmarks.0.source", "Lin-Chen/MMStar", "up to 42 MB"),
    ]
    assert planned("quickstart").downloads == []


SOURCES = """
from nanovlm import ComponentConfig, Dataset, hookimpl

class Sources(Dataset):
    class Config(ComponentConfig):
        source: str | list[str]

@hookimpl
def register_datasets(register):
    register("sources", Sources)
"""


def test_what_is_on_this_machine_is_not_downloaded(tmp_path):
    (tmp_path / "sources.py").write_text(SOURCES)
    (tmp_path / "rows.jsonl").touch()
    sources = [tmp_path, tmp_path / "rows.jsonl", "[one, two]", "owner/name"]
    train = ", ".join(f"{{name: sources, source: {source}}}" for source in sources)
    registries = load_plugins([str(tmp_path / "sources.py")])
    experiment = load_experiment(f"{ROOT}/experiments/quickstart.yaml", [f"data.train=[{train}]"])
    downloads = plan(Recipe.of(experiment, registries)).downloads
    assert downloads == [Download("data.train.3.source", "owner/name", None)]
    assert downloads[0].size == "size unknown"


@pytest.mark.parametrize(
    ("overrides", "pieces"),
    [
        (
            ["training.tokens_per_row=82"],
            ["training.tokens_per_row=82: the longest sample takes 79 text + 1 x 4 image tokens = 83", "raise it"],
        ),
        (
            ["data.max_images=3", "training.tokens_per_row=90"],
            ["79 text + 3 x 4 image tokens = 91", "lower data.max_text_tokens or data.max_images"],
        ),
        (
            ["language_decoder.max_position_embeddings=82"],
            ["language_decoder: takes at most 82 tokens", "79 text + 1 x 4 image tokens = 83"],
        ),
        (["projector.factor=3"], ["projector: factor=3 must divide the 4 x 4 patch grid; 1, 2, 4 do"]),
        (
            [f"training.learning_rate.{role}=0" for role in ("vision_encoder", "projector", "language_decoder")],
            ["training.learning_rate: every component is frozen, so there is nothing to train"],
        ),
    ],
)
def test_what_cannot_work_is_refused(overrides, pieces):
    with pytest.raises(ConfigError) as error:
        plan(tiny_recipe(*overrides))
    assert [piece for piece in pieces if piece not in str(error.value)] == []


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.epochs=1", "training.epochs=1: finevision is a stream and has no length; set training.steps or"),
        ("data.validation.share=1", "data.validation.share=1: all of the stream is held out for validation; lower it"),
        ("data.validation.limit=0", "data.validation.limit=0: finevision is a stream and has no length, so all of its"),
    ],
)
def test_what_a_stream_cannot_do_is_told_before_it_is_opened(override, told):
    with pytest.raises(ConfigError) as error:
        planned("finevision", override)
    assert str(error.value).startswith(told)


def test_a_sample_that_just_fits_is_planned():
    assert tiny_plan("training.tokens_per_row=83", "language_decoder.max_position_embeddings=83").longest_sample == 83


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor with real content that comes out of any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, FakeTensor) and tensor.device.type == "cpu":
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def test_no_weight_is_ever_allocated():
    recipe = Recipe.of(load_experiment(f"{ROOT}/experiments/baseline.yaml"), load_plugins())
    with Largest() as largest:
        plan(recipe)
    assert 0 < largest.bytes <= 10 * MILLION  # a row's pictures; the weights would be 888 million, an embedding 113


def test_everything_of_a_plan_can_be_written_as_json():
    content = tiny_plan().to_json()
    assert content["total_parameters"] == sum(content["parameters"].values())
    assert planned("baseline").to_json()["downloads"][3] == {
        "where": "benchmarks.0.source", "source": "Lin-Chen/MMStar", "bytes": 42_000_000,
    }  # fmt: skip
    assert content.keys() > {"name", "image_tokens", "flops_per_sample", "memory_bytes", "precision", "downloads"}
