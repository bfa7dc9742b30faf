"""A small random model with a tokenizer, and a folder of benchmark files."""

import json
import lzma

import pytest
import torch

from puna.engine.generate import load_engine
from puna.model.config import ModelConfig
from puna.model.store import save_model
from puna.text.tokenizer import train_tokenizer

WORDS = "Question: Which of these is a fruit of the tree? Answer: the apple, a red pear, three stones and 12 dogs. "


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory, random_model):
    """A model whose every weight is random: what it says is no sense, but always the same."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = train_tokenizer([WORDS * 20], 400)
    config = ModelConfig(preset="nano", vocab_size=400, max_position_embeddings=256)
    save_model(
        folder, config, random_model(config).state_dict(), tokenizer, dtype=torch.float32, lineage={"stage": "base"}
    )
    return folder


@pytest.fixture(scope="session")
def make_engine(model_directory):
    """A function that loads the model as evaluations do."""
    return lambda **options: load_engine(model_directory, **{"deterministic": True, **options})


@pytest.fixture
def data_folder(tmp_path):
    """ARC-Easy and GSM8K of a few made-up rows, packed and not."""
    folder = tmp_path / "data"
    (folder / "mc").mkdir(parents=True)
    (folder / "gsm8k").mkdir()
    arc = [
        {
            "id": f"q{n}",
            "question": f"Which of these is {n} apples?",
            "choices": {"text": [f"{n} apples", "a pear", "three stones"], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[n % 3],
        }
        for n in range(40)
    ]
    with lzma.open(folder / "mc" / "arc_easy_validation.jsonl.xz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in arc))
    problems = [
        {"question": f"What is {n} and {n}?", "answer": f"<<{n}+{n}={2 * n}>>It is so.\n#### {2 * n}"} for n in range(9)
    ]
    for name in ("train", "test"):
        (folder / "gsm8k" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    return folder
