"""The shipped recipes of tuning run: one after the other, on a tiny model."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from puna.cli.main import main
from puna.model.config import ModelConfig
from puna.model.store import load_lineage, save_model
from puna.text.tokenizer import train_tokenizer

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "tune"
SMALL = ["train.steps=2", "train.batch=2", "train.seq_len=256"]
QUICK = [*SMALL, "measure.problems=0"]
ROLLOUT = ["rollout.max_tokens=8", "curriculum.min_pass=0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, random_model) -> Path:
    """A tiny chat model with room for the recipes' rows."""
    tokenizer = train_tokenizer(["add 12 and 30: 42; grid path up down left right; list reverse sort"] * 40, 512)
    config = ModelConfig(preset="nano", vocab_size=tokenizer.vocab_size, max_position_embeddings=1024)
    directory = tmp_path_factory.mktemp("models") / "tiny"
    state = random_model(config).state_dict()
    save_model(directory, config, state, tokenizer, dtype=torch.float32, lineage={"stage": "chat"})
    return directory


def test_five_lines_from_a_published_model_to_ones_own(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of docs/getting-started.md, with a folder for the repository."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"messages": [{"role": "user", "content": f"add {n} and 1"}, {"role": "assistant", "content": f"{n + 1}"}]}
        for n in range(80)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["import", str(model), "-o", "models/llama-1b"]) == 0
    lora = ["tune", "sft", str(RECIPES / "lora.toml"), "models/llama-1b"]
    assert main([*lora, "train.steps=4", "train.batch=2", "train.seq_len=128", "log.eval_every=2"]) == 0
    assert (tmp_path / "runs/llama-1b-sft/adapter/adapter_model.safetensors").is_file()
    assert load_lineage(tmp_path / "runs/llama-1b-sft/model")["stage"] == "sft"
    assert main(["sample", "runs/llama-1b-sft", "-p", "add", "--max-tokens", "2"]) == 0
    assert main(["export", "runs/llama-1b-sft", "--to", "ollama", "--no-verify"]) == 0
    assert "ollama create llama-1b-sft -f" in capsys.readouterr().out
    assert (tmp_path / "runs/llama-1b-sft-ollama/Modelfile").is_file()


def test_the_recipes_follow_each_other(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "models" / "demo")

    def tune(name: str, *overrides: str) -> None:
        stage = {"sft": "sft", "lora": "sft"}.get(name, name)
        assert main(["tune", stage, str(RECIPES / f"{name}.toml"), *overrides]) == 0
        assert name == "rejection" or (tmp_path / "runs" / f"demo-{name}" / "model").is_dir()

    tune("sft", *QUICK)
    # A model that knows nothing picks nothing: what rejection sampling would have kept is written by hand.
    pair = {"prompt": "add 1 and 2", "chosen": "3", "rejected": "4"}
    pairs = tmp_path / "runs" / "demo-rejection" / "preferences.jsonl"
    pairs.parent.mkdir()
    pairs.write_text("".join(json.dumps({**pair, "prompt": f"add {n} and 2"}) + "\n" for n in range(40)))
    tune("reward", *SMALL)
    tune("dpo", *QUICK)
    tune("rl", *QUICK, *ROLLOUT, "rollout.samples=2")
    tune("distill", *QUICK, *ROLLOUT)
    tune("average")
