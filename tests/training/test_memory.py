import pytest
import torch
from tiny import example, tiny_model

from nanovlm import Turn, VisionLanguageModel
from nanovlm.data.packing import pack_row
from nanovlm.training.memory import MemoryWatch, OutOfMemoryError

WORDS = "lower training.tokens_per_row or training.images_per_row, which changes no sample of any step, or set "
GPU, CPU = torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")


def row_of(samples: int):
    model = tiny_model()
    return pack_row([example(model, [Turn("Hi?", "yes")], num_images=1)] * samples, model.num_image_tokens)


@pytest.mark.parametrize("error", [GPU, CPU], ids=["GPU", "CPU"])
def test_what_did_not_fit_is_told_with_what_did(error):
    watch, small, middle, large = MemoryWatch(), row_of(1), row_of(2), row_of(3)
    for row in (middle, small):
        with watch.row(row, step=1):
            pass
    with pytest.raises(OutOfMemoryError) as caught, watch.row(large, step=2):
        raise error
    tokens, fitted = len(large.token_ids), len(middle.token_ids)
    assert str(caught.value) == (
        f"step 2: out of memory at a row of {tokens} tokens with 3 pictures (the largest that fitted has "
        f"{fitted} tokens with 2 pictures); {WORDS}training.gradient_checkpointing=true"
    )


def test_where_nothing_has_fitted_yet_that_is_said():
    with pytest.raises(OutOfMemoryError, match=r"\(none has fitted yet\)"), MemoryWatch().row(row_of(1), step=1):
        raise GPU


def test_other_errors_go_their_way():
    with pytest.raises(RuntimeError, match="a bug"), MemoryWatch().row(row_of(1), step=1):
        raise RuntimeError("a bug")


def test_a_run_that_runs_out_of_memory_says_where(trainer, monkeypatch):
    some = trainer("training.tokens_per_row=84")
    plain, rows = VisionLanguageModel.losses, []

    def losses(model, row):
        rows.append(row)
        if len(rows) == 2:
            raise GPU
        return plain(model, row)

    monkeypatch.setattr(VisionLanguageModel, "losses", losses)
    with pytest.raises(OutOfMemoryError) as caught:
        some.train_step()
    sizes = [f"{len(row.token_ids)} tokens with {len(row.pixels)} pictures" for row in rows]
    assert f"at a row of {sizes[1]} (the largest that fitted has {sizes[0]})" in str(caught.value)


def test_the_optimizers_first_update_may_be_too_much(trainer, monkeypatch):
    some = trainer()

    def full():
        raise GPU

    monkeypatch.setattr(some.optimizer.adamw, "step", full)
    with pytest.raises(OutOfMemoryError, match=r"^step 1: out of memory"):
        some.train_step()


@pytest.mark.parametrize("error", [GPU, CPU], ids=["GPU", "CPU"])
def test_it_is_the_users_to_put_right(run, monkeypatch, error):
    def losses(model, row):
        raise error

    monkeypatch.setattr(VisionLanguageModel, "losses", losses)
    with pytest.raises(OutOfMemoryError):
        run()
