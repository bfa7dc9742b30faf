"""Planner questions for several test files."""

from collections.abc import Callable
from typing import Any

import pytest

from puna.model.config import ModelConfig
from puna.plan.equations.cost_model import CostModel
from puna.plan.equations.hardware import find_accelerator
from puna.plan.equations.shape import from_config
from puna.plan.layouts.predict import Question


@pytest.fixture(scope="session")
def ask() -> Callable[..., Question]:
    """A function that builds a question for a preset: ask("llama3-8b", 8, "h100", batch=512)."""

    def asked(
        model: str = "llama3-8b",
        count: int = 8,
        kind: str = "h100",
        *,
        batch: int = 512,
        seq_len: int = 8192,
        stack: str = "megatron-core",
        **more: Any,
    ) -> Question:
        """A question with the constants expected before any fit."""
        shape, costs = from_config(ModelConfig(preset=model)), CostModel(stack, {})
        return Question(model, shape, find_accelerator(kind), count, seq_len, batch, costs=costs, **more)

    return asked
