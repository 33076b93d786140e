from dataclasses import replace

import pytest
import torch
from tiny import tiny_model, tiny_recipe

from nanovlm import ConfigError
from nanovlm.data.packing import PackedRow
from nanovlm.training import blocks
from nanovlm.training.launch import choose_packing
from nanovlm.training.trainer import Trainer

LAYERS = 10  # more than the eight graphs that one function may have


@pytest.fixture
def graphs(monkeypatch):
    """What was compiled, with a compiler that runs each graph as it is; compilation is forgotten afterwards.

    More graphs of one function than are allowed are an error, as torch only warns of them.
    """
    made = []

    def compiler(graph, inputs):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(blocks, "BACKEND", compiler)
    torch._dynamo.reset()
    usual = torch._dynamo.config.recompile_limit
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=usual):
        yield made
    torch._dynamo.reset()


@pytest.fixture
def varlen_kernel(monkeypatch):
    """In the place of varlen attention's kernel, which no CPU has: anything that depends on all three."""
    monkeypatch.setattr("nanovlm.training.launch.varlen_obstacle", lambda *_: "")
    monkeypatch.setattr("nanovlm.varlen.varlen_attn", lambda q, k, v, *_, **__: q + (k * v).sum(dim=1, keepdim=True))


DEEP = (f"vision_encoder.num_hidden_layers={LAYERS}", f"language_decoder.num_hidden_layers={LAYERS}")
SIZED = (
    "language_decoder.hidden_size=32",  # heads of 8, which suit flash attention
    "training.steps=8",
    "training.samples_per_step=6",
    "training.tokens_per_row=150",
    "data.train.0.train_size=256",
)
COMPILED = "training.compile=true"


def losses(trainer: Trainer) -> list[float]:
    return [float(trainer.train_step()["loss"]) for _ in range(trainer.total_steps)]


def test_compiled_blocks_learn_the_same(trainer, graphs, tmp_path):
    plain = losses(trainer(*SIZED))
    assert not graphs
    assert losses(trainer(*SIZED, COMPILED)) == pytest.approx(plain, rel=1e-4)
    assert graphs


def test_all_blocks_of_a_component_share_their_graphs(trainer, graphs):
    """There is one for each length of row, and one for any number of pictures: not one for each layer."""
    flat = trainer(*SIZED, COMPILED, "vision_encoder.num_hidden_layers=2", "language_decoder.num_hidden_layers=2")
    losses(flat)
    few = len(graphs)
    torch._dynamo.reset()
    graphs.clear()
    losses(trainer(*SIZED, COMPILED, *DEEP))
    assert len(graphs) == few


@pytest.mark.parametrize("varlen", [False, True], ids=["grouped", "varlen"])
def test_after_the_first_steps_nothing_is_compiled_any_more(trainer, graphs, monkeypatch, request, varlen):
    """Though rows and the number of pictures differ from step to step."""
    monkeypatch.setattr("nanovlm.data.filling.IMAGE_MULTIPLE", 2)
    if varlen:
        request.getfixturevalue("varlen_kernel")
    some = trainer(*SIZED, COMPILED, *DEEP, "training.steps=32")
    counts = []
    for _ in range(some.total_steps):
        some.train_step()
        counts.append(len(graphs))
    assert counts[-1] == counts[19] > 0
    lengths = choose_packing(tiny_recipe(*SIZED, COMPILED), some.model).filling.lengths
    assert len(lengths) == 3
    if varlen:  # the decoder's block in each length, and the encoder's for any number of pictures
        assert counts[-1] <= len(lengths) + 1


def without_pictures(row: PackedRow) -> PackedRow:
    return replace(row, pixels=row.pixels[:0], image_slots=row.image_slots[:0], num_images=0)


def test_a_thaw_and_rows_without_pictures_leave_room_for_all_graphs(trainer, graphs, varlen_kernel):
    """A row without a picture needs no gradient of a frozen decoder's input: these are graphs of their own."""
    some = trainer(*SIZED, COMPILED, "training.steps=40", "training.frozen_until_step.language_decoder=20")
    steps = list(some.steps)
    for step in steps[::2]:
        step.rows = [without_pictures(row) for row in step.rows]
    some.steps = iter(steps)
    losses(some)
    assert len(graphs) > 8


def test_a_block_may_get_its_pictures_by_keyword(graphs):
    compiled = blocks.any_batch(lambda scale, hidden_states: hidden_states * scale)
    for batch in (2, 3, 5):
        assert compiled(scale=2, hidden_states=torch.ones(batch, 4)).equal(torch.full((batch, 4), 2.0))
    assert len(graphs) == 1


def test_what_is_asked_on_the_way_is_not_compiled(run, graphs):
    busy = ("data.validation.share=0.2", "data.validation.every=1", "benchmarks.0.every=1", "training.steps=3")
    plain = run(*busy)
    compiled = run(*busy, COMPILED)
    trained = len(graphs)
    torch._dynamo.reset()
    graphs.clear()
    run("training.steps=3", "data.validation.share=0.2", COMPILED, "benchmarks=[]")
    assert len(graphs) == trained > 0
    assert compiled.metric("loss") == pytest.approx(plain.metric("loss"), rel=1e-4)


def test_weights_keep_their_names(trainer, graphs):
    some = trainer(COMPILED, "training.gradient_checkpointing=true")
    some.train_step()
    assert some.model.state_dict().keys() == tiny_model().state_dict().keys()


@pytest.mark.parametrize("compile", [False, True])
def test_checkpointed_blocks_learn_the_same_and_run_twice(trainer, graphs, monkeypatch, compile):
    calls = []
    for with_checkpoints in (False, True):
        switches = (f"training.gradient_checkpointing={with_checkpoints}", f"training.compile={compile}")
        some = trainer(*(switch.lower() for switch in switches))
        norm = some.model.language_decoder.blocks[0].norm1  # within a block
        norm.register_forward_hook(lambda *_, kind=with_checkpoints: calls.append(kind))
        calls.append(losses(some))
    (plain, checkpointed) = (call for call in calls if isinstance(call, list))
    assert checkpointed == pytest.approx(plain, rel=1e-5)
    if not compile:  # in a graph, what runs twice is not to be seen
        assert (calls.count(False), calls.count(True)) == (3, 2 * 3)


def test_checkpointed_blocks_keep_less_for_the_backward_pass(trainer):
    def kept(*overrides: str) -> int:
        some, sizes = trainer(*overrides), []
        row = next(some.steps).rows[0]
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            some.model(row)
        return sum(sizes)

    assert kept("training.gradient_checkpointing=true", *DEEP) < kept(*DEEP) / 2


def test_a_compiler_that_fails_is_an_error_that_says_what_to_do(trainer, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("Cannot find a working triton installation.")

    monkeypatch.setattr(blocks, "BACKEND", broken)
    torch._dynamo.reset()
    with pytest.raises(
        ConfigError, match=r"^training\.compile: .*triton.*; set training\.compile=false to train without"
    ):
        trainer(COMPILED).train_step()


@pytest.mark.parametrize(
    ("choice", "device", "expected"),
    [
        ("auto", "cpu", False),
        ("auto", "cuda", True),
        ("auto", "mps", False),
        (True, "cpu", True),
        (False, "cuda", False),
    ],
)
def test_auto_compiles_on_cuda_only(choice, device, expected):
    config = blocks.Training(steps=1, compile=choice)
    assert blocks.compiles(config, torch.device(device)) is expected


def test_a_borrowed_decoder_can_be_compiled(trainer, graphs):
    overrides = (
        "language_decoder={name: hf_decoder, architecture: {model_type: llama, vocab_size: 257, hidden_size: 24, "
        "intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, "
        "max_position_embeddings: 512}}",
    )
    plain = losses(trainer(*overrides))
    assert losses(trainer(*overrides, COMPILED)) == pytest.approx(plain, rel=1e-4)
