"""Trainers that can be taken apart, about to take their first step on synthetic samples."""

import pytest
from tiny import tiny_recipe

from nanovlm.bench.setup import build_trainer, with_steps
from nanovlm.bench.split import DividedTrainer


@pytest.fixture
def trainer():
    """``trainer(*overrides)`` for the tiny experiment; two of them are equal."""

    def trainer(*overrides: str, synthetic: bool = True) -> DividedTrainer:
        return build_trainer(with_steps(tiny_recipe(*overrides), 8), synthetic)

    return trainer
