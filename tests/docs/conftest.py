"""A folder in which the documentation's commands and examples run: a tiny model, the recipes, nothing else."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import puna
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.model.store import save_model
from puna.text.tokenizer import train_tokenizer

sys.path.insert(0, str(Path(__file__).parent))  # so that tests import what they share: `docs_support`
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory, random_model: Callable[..., LlamaForCausalLM]) -> Path:
    """A chat model of random weights."""
    core = Path(puna.__file__).parent / "core"
    tokenizer = train_tokenizer([path.read_text(encoding="utf-8") for path in sorted(core.glob("*.py"))], 512)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    directory = tmp_path_factory.mktemp("models") / "demo"
    state = random_model(config).state_dict()
    save_model(directory, config, state, tokenizer, dtype=torch.float32, lineage={"stage": "sft"})
    return directory


@pytest.fixture
def workshop(tmp_path: Path, demo_model: Path, monkeypatch: pytest.MonkeyPatch, clean_plugins: None) -> Path:
    """The current directory of a reader: models/demo and recipes/ are there."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "demo").symlink_to(demo_model)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PUNA_EVAL_DATA", raising=False)
    return tmp_path
