"""A model directory for the tests of tuning: tiny, with a tokenizer that has the chat tokens."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.model.store import save_model
from puna.text.tokenizer import Tokenizer
from puna.train.measure.machine import Machine

# Not measured: these runs need no rates, and measuring takes longer than the runs.
MACHINE = Machine("cpu", "test", 1, 8 << 30, {"fp32": 1e11, "bf16": 1e11}, False)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def machine() -> Machine:
    return MACHINE


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A small tokenizer, stored as a file because the results of the stages depend on it."""
    return Tokenizer.load(Path(__file__).parent / "golden" / "tokenizer.json")


@pytest.fixture(scope="session")
def config(tokenizer: Tokenizer) -> ModelConfig:
    return ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )


@pytest.fixture(scope="session")
def model_dir(
    tmp_path_factory: pytest.TempPathFactory,
    config: ModelConfig,
    tokenizer: Tokenizer,
    random_model: Callable[..., LlamaForCausalLM],
) -> Path:
    """A model with random weights and its tokenizer."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    lineage: dict[str, Any] = {"stage": "base", "step": 0}
    state = random_model(config).state_dict()
    save_model(directory, config, state, tokenizer, dtype=torch.float32, lineage=lineage)
    return directory
