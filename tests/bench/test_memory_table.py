import pytest
from tiny import tiny_recipe

from nanovlm import ConfigError
from nanovlm.bench import memory
from nanovlm.bench.memory import Fitted, predicted
from nanovlm.training.memory import OutOfMemoryError

GIB = 2**30


@pytest.fixture
def machine(monkeypatch):
    """``machine(limit, cost)``: so much memory, and what a step of so many samples takes of it."""

    def machine(limit, cost) -> list[int]:
        tried = []

        def take(trainer, recipe, samples):
            tried.append(samples)
            if cost(samples) > limit:
                raise OutOfMemoryError("no more")
            return Fitted(samples, samples * 10, samples, int(cost(samples)))

        monkeypatch.setattr(memory, "available_memory", lambda device: limit)
        monkeypatch.setattr(memory, "take_step", take)
        return tried

    return machine


def test_it_stops_before_a_step_would_not_fit(machine):
    tried = machine(10 * GIB, lambda samples: 2 * GIB + samples * GIB // 8)
    figures = memory.measure_memory(tiny_recipe(), 0)
    assert tried == [1, 2, 4, 8, 16, 32]  # 64 would take 10 GiB
    assert figures["largest"] == {
        "samples": 32, "tokens_per_row": 320, "images_per_row": 32, "peak_memory_bytes": 6 * GIB,
    }  # fmt: skip
    assert figures["stopped_by"] == "64 samples would take about 10.0 GiB"


def test_a_step_that_does_not_fit_after_all_ends_it(machine):
    tried = machine(10 * GIB, lambda samples: GIB * (1 if samples < 8 else 100))
    figures = memory.measure_memory(tiny_recipe(), 0)
    assert tried == [1, 2, 4, 8]
    assert figures["largest"]["samples"] == 4
    assert figures["stopped_by"] == "8 samples did not fit"


def test_where_not_even_one_sample_fits(machine):
    machine(GIB, lambda samples: 2 * GIB)
    with pytest.raises(ConfigError, match=r"--memory: not even a step of one sample fits; lower data.max_text_tokens"):
        memory.measure_memory(tiny_recipe(), 0)


def test_without_a_known_limit_it_is_asked_for(machine, monkeypatch):
    machine(10 * GIB, lambda samples: GIB)
    monkeypatch.setattr(memory, "available_memory", lambda device: None)
    with pytest.raises(ConfigError, match="cannot be told; say where to stop with --most N"):
        memory.measure_memory(tiny_recipe(), 0)


def test_memory_is_predicted_along_a_straight_line():
    line = [Fitted(samples, 0, 0, 700 + 30 * samples) for samples in (4, 8)]
    assert predicted(line) == 700 + 30 * 16
    assert predicted(line[:1]) == 0


def test_real_steps_are_one_row_each_and_stop_at_most():
    figures = memory.measure_memory(tiny_recipe("training.tokens_per_row=128"), 5)
    assert [row["samples"] for row in figures["rows"]] == [1, 2, 4]
    assert [row["images_per_row"] for row in figures["rows"]] == [1, 2, 4]
    tokens = [row["tokens_per_row"] for row in figures["rows"]]
    assert tokens == sorted(tokens) and tokens[-1] > 128
    peaks = [row["peak_memory_bytes"] for row in figures["rows"]]
    assert peaks == sorted(peaks) and peaks[0] > 0
    assert figures["stopped_by"] == "--most 5"
