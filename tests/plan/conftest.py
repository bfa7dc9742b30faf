"""Questions to plan, shared by the tests of what answers them."""

from collections.abc import Callable
from typing import Any

import pytest

from puna.model.config import ModelConfig
from puna.plan.hardware import find_accelerator
from puna.plan.predict import Question
from puna.plan.shape import from_config


@pytest.fixture(scope="session")
def ask() -> Callable[..., Question]:
    """A function that asks for a preset on so many accelerators: ask("llama3-8b", 8, "h100", batch=512)."""

    def asked(
        model: str = "llama3-8b",
        count: int = 8,
        kind: str = "h100",
        *,
        batch: int = 512,
        seq_len: int = 8192,
        **more: Any,
    ) -> Question:
        config = ModelConfig(preset=model)
        return Question(model, from_config(config), find_accelerator(kind), count, seq_len, batch, **more)

    return asked
