"""Fixtures that several rooms share."""

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# No test is about wall-clock time, and a busy machine is no defect. On a desk each run draws examples of its own; where
# a change is judged (CI is set) they are the same ones every time.
settings.register_profile("puna", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("puna")

# Several workers share the cores, and torch reads this when it is first imported, here or in a process a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from puna.model.config import ModelConfig
    from puna.model.llama import LlamaForCausalLM


@pytest.fixture(autouse=True)
def drawn_as_always(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """What is sampled without a seed comes out the same in every run: a random model may end a text at any token."""
    sampling = sys.modules.get("puna.engine.sampling")
    if sampling is not None:
        numbers = random.Random(request.node.name)
        monkeypatch.setattr(sampling, "secrets", SimpleNamespace(randbits=numbers.getrandbits))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of shared real data (weights, vectors, corpora). Skips without PUNA_TEST_DATA."""
    place = os.environ.get("PUNA_TEST_DATA")
    if not place or not Path(place).is_dir():
        pytest.skip("needs the shared test data: set PUNA_TEST_DATA to its folder")
    return Path(place)


@pytest.fixture(scope="session")
def random_model() -> Callable[..., "LlamaForCausalLM"]:
    """A function `(config, seed=0) -> model` whose every weight is random: a fresh model's blocks do nothing yet."""

    def make(config: "ModelConfig", seed: int = 0) -> "LlamaForCausalLM":
        import torch

        from puna.model.llama import LlamaForCausalLM

        model = LlamaForCausalLM(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.normal_(1.0, 0.1, generator=generator)
                else:
                    parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
        return model.eval()

    return make


@pytest.fixture
def clean_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that this test includes are forgotten when it ends."""
    from puna.core import plugins
    from puna.evals.catalogue import BENCHMARKS
    from puna.serve.backends.plugins import BACKENDS
    from puna.tasks.catalogue import TASKS

    monkeypatch.setattr(plugins, "_included", {})
    for registry in (TASKS, BENCHMARKS, BACKENDS):
        for name, empty in (("_entries", {}), ("_origins", {}), ("_seen", set()), ("_filled", False)):
            monkeypatch.setattr(registry, name, empty)


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory, random_model: Callable) -> Path:
    """A directory with a model of 40 thousand parameters that says anything at all."""
    import torch

    from puna.model.config import ModelConfig
    from puna.model.store import save_model
    from puna.text.tokenizer import train_tokenizer

    texts = [
        'The harbour was quiet. "Call the pilot," said the master, "and give the time."',
        '{"name": "get_time", "arguments": {"city": "Oslo", "hour": 12, "list": [1, 2.5, true, null]}}',
        "Grüße aus 東京! Ça va? Ships ran in and out of the harbour, and the ships of the harbour ran out.",
    ] * 4
    tokenizer = train_tokenizer(texts, 512)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    directory = tmp_path_factory.mktemp("models") / "tiny"
    model = random_model(config)
    save_model(directory, config, model.state_dict(), tokenizer, dtype=torch.float32, lineage={"stage": "chat"})
    return directory
