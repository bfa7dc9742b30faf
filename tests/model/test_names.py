"""One rule for the names of models: a folder's name, and for a run's folder `model` the run's."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from puna.cli.main import main
from puna.model.config import ModelConfig
from puna.model.hub import model_name
from puna.model.llama import LlamaForCausalLM
from puna.model.store import save_model
from puna.text.tokenizer import train_tokenizer
from puna.tune.recipe import StageBase


@pytest.fixture
def runs(tmp_path: Path, random_model: Callable[..., LlamaForCausalLM]) -> Path:
    """A folder with the finished runs a and b."""
    config = ModelConfig(preset="nano")
    tokenizer = train_tokenizer(["def add(a, b): return a + b\n"] * 30, 320)
    state = random_model(config).state_dict()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.toml").write_text('name = "x"\n')
        save_model(tmp_path / name / "model", config, state, tokenizer, dtype=torch.float32, lineage={"stage": "base"})
    return tmp_path


def test_the_rule(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs / "a" / "model")
    for place in (runs / "a", runs / "a" / "model", f"{runs}/a/model/", ".", "../../a"):
        assert model_name(place) == "a"
    (runs / "a").rename(runs / "model")
    assert model_name(runs / "model") == "model", "a run may be called model itself"
    assert model_name(runs / "model" / "model") == "model"
    assert model_name("/model") == "model"
    (runs / "best").symlink_to(runs / "b" / "model")
    assert model_name(runs / "best") == "best"


def test_cards_runs_and_exports_follow_it(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\n# a\n" in (runs / "a" / "model" / "README.md").read_text()
    assert StageBase(stage="sft", model=str(runs / "a" / "model")).run_name == "a-sft"
    monkeypatch.chdir(runs)
    assert main(["export", "a/model", "--to", "gguf", "--no-verify"]) == 0
    assert (runs / "a-F32.gguf").is_file()
    assert main(["import", "b/model", "-o", "models/copy"]) == 0
    assert json.loads((runs / "models" / "copy" / "puna.json").read_text())["parent"] == "b"


@pytest.mark.parametrize(
    "words", [["a", "a/model"], ["x=a", "x=b"], ["a", "b", "a=b/model"], ["./a/", "a"]], ids=" ".join
)
def test_equal_names_are_refused_before_anything_is_loaded(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.chdir(runs)
    assert main(["serve", *words, "--port", "0"]) == 2
    assert "Two models would be called" in capsys.readouterr().err


def test_served_names(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from puna.cli.serve_command import _named

    monkeypatch.chdir(runs)
    assert _named("a", "native") == ("a", "a/model")
    assert _named("b/model", "native") == ("b", "b/model")
    assert _named("small=b", "native") == ("small", "b/model")
    (runs / "a").rename(runs / "lr=0.1")
    assert _named("lr=0.1", "native") == ("lr=0.1", "lr=0.1/model"), "a path may have the sign in it"
    assert _named("org/model", "openai") == ("org/model", "org/model")
    assert _named("b", "vllm") == ("b", "b/model"), "another engine gets the model of a run too"
    assert _named("", "openai") == ("", "")


def test_all_files_of_a_model_have_one_mode(runs: Path) -> None:
    before = os.umask(0o027)
    try:
        (runs / "neighbour").touch()
        assert main(["import", str(runs / "a"), "-o", str(runs / "models" / "copy")]) == 0
    finally:
        os.umask(before)
    usual = stat.S_IMODE((runs / "neighbour").stat().st_mode)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (runs / "models" / "copy").iterdir()}
    assert modes == dict.fromkeys(modes, usual)
    assert "model.safetensors" in modes
