"""A tiny tokenizer and a function that writes tiny models of any shape."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.model.store import save_model
from puna.text.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["def add(a, b): return a + b  # it's 12345 näive\n"] * 30, 330)


@pytest.fixture
def make(tmp_path: Path, tokenizer: Tokenizer, random_model: Callable[..., LlamaForCausalLM]) -> Callable[..., Path]:
    """A function (stage, dtype=, tokenizer=, **shape) -> directory of a new model named demo."""

    def written(
        stage: str = "base", dtype: torch.dtype = torch.float32, words: Tokenizer | None = None, **shape: Any
    ) -> Path:
        model = random_model(ModelConfig(**{"preset": "nano", "vocab_size": 340, **shape}))
        words = words or tokenizer
        lineage = {"stage": stage, "licence": "CC-BY-4.0", "parent": "/secret/place/first"}
        path = tmp_path / "demo"
        save_model(path, model.config, model.state_dict(), words, dtype=dtype, lineage=lineage)
        return path

    return written
