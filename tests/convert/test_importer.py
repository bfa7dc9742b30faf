"""Importing: real models and ones that are not fit to be used."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from puna.convert.importer import import_model
from puna.core.errors import PunaError
from puna.model.config import ModelConfig, RopeScaling
from puna.model.llama import LlamaForCausalLM
from puna.model.store import load_model, load_stage, save_model
from puna.text.tokenizer import train_tokenizer

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A chat model as transformers saves it, with a template, a licence and sampling defaults of its own."""
    folder = tmp_path / "source"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**ModelConfig(preset="nano").to_hf())
    model = transformers.LlamaForCausalLM(config)
    model.generation_config.update(eos_token_id=[3, 9], temperature=0.6, top_p=0.9, do_sample=True)
    model.save_pretrained(folder, max_shard_size="100KB")
    train_tokenizer(["one two three four five"] * 20, 300).save(folder)
    (folder / "chat_template.jinja").write_text("{{ 'its own' }}")
    (folder / "LICENSE.txt").write_text("theirs")
    (folder / "optimizer.bin").write_bytes(b"not wanted")
    return folder


def test_everything_that_counts_arrives(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "models/x"
    lineage = import_model(source, out, origin="org/x")
    assert lineage["parent"] == "org/x"
    assert lineage["stage"] == load_stage(out) == "chat"
    ids = torch.arange(30)[None]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source)
    assert (load_model(out)(ids) - theirs(ids).logits).abs().max() <= 1e-5
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [3, 9]
    assert generation["temperature"] == 0.6
    for name in ("tokenizer.json", "chat_template.jinja", "LICENSE.txt"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert not (out / "optimizer.bin").exists()


@torch.no_grad()
def test_an_own_head_arrives_in_a_model_that_says_tied(source: Path, tmp_path: Path, capsys: Captured) -> None:
    values = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(values | {"tie_word_embeddings": True}))
    import_model(source, tmp_path / "out", origin="x")
    said = " ".join(capsys.readouterr().err.split())
    assert f"Checked: its logits are those of transformers {transformers.__version__}" in said
    assert "<|end_of_text|> (" in said
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    ids = torch.arange(30)[None]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(source)(ids).logits
    for folder in (source, tmp_path / "out"):
        assert (load_model(folder)(ids) - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "change",
    [{"rms_norm_eps": 1e-2}, {"rope_theta": 20000.0}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}],
)
def test_the_check_is_against_transformers_and_not_against_ourselves(
    change: dict[str, Any], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ModelConfig.from_hf.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(ModelConfig, "from_hf", classmethod(lambda *args: read(*args).model_copy(update=wrong)))
    wrong = {key: RopeScaling(**value) if isinstance(value, dict) else value for key, value in change.items()}
    with pytest.raises(PunaError, match="the logits differ from those of transformers"):
        import_model(source, tmp_path / "out", origin="x")


def test_what_could_not_be_compared_is_not_called_checked(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    import_model(source, tmp_path / "a", origin="x")
    monkeypatch.undo()
    enough_to_load = round(4.2 * ModelConfig(preset="nano").num_parameters())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": enough_to_load})())
    import_model(source, tmp_path / "b", origin="x")
    said = " ".join(capsys.readouterr().err.split())
    assert "Read back unchanged; transformers is not installed, so it was not compared with it." in said
    assert "Read back unchanged; there is too little memory to compare it with transformers." in said
    assert "Checked" not in said


def test_an_existing_directory_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(PunaError, match="exists already"):
        import_model(source, tmp_path / "there", origin="x")
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(source: Path, tmp_path: Path, value: float) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    index = json.loads((source / "model.safetensors.index.json").read_text())
    file = source / index["weight_map"][name]
    tensors = load_file(file)
    tensors[name][3, 5] = value
    save_file(tensors, file)
    with pytest.raises(PunaError, match=name):
        import_model(source, tmp_path / "out", origin="x")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_larger_than_the_embedding_is_refused(source: Path, tmp_path: Path) -> None:
    train_tokenizer([f"{i * 7919} word{i}" for i in range(3000)], 600).save(source)
    with pytest.raises(PunaError, match="vocab_size is 512"):
        import_model(source, tmp_path / "out", origin="x")


def test_real_models_import_without_a_tokenizer(test_data: Path, tmp_path: Path, capsys: Captured) -> None:
    for name in ("stories260K", "babyllama105"):
        lineage = import_model(test_data / "weights" / name / "hf", tmp_path / name, origin=name)
        assert lineage["stage"] == "base"
        assert json.loads((tmp_path / name / "config.json").read_text())["eos_token_id"] == 2
        assert "The model has no tokenizer" in capsys.readouterr().err


def test_a_base_model_of_ours_stays_one_though_its_tokenizer_has_a_template(
    tmp_path: Path, random_model: Callable[..., LlamaForCausalLM]
) -> None:
    model = random_model(ModelConfig(preset="nano"))
    tokenizer = train_tokenizer(["one two three"] * 20, 300)
    save_model(
        tmp_path / "m", model.config, model.state_dict(), tokenizer, dtype=torch.float32, lineage={"stage": "base"}
    )
    assert load_stage(tmp_path / "m") == "base"
    shutil.copytree(tmp_path / "m", tmp_path / "n")
    (tmp_path / "n/puna.json").unlink()
    assert load_stage(tmp_path / "n") == "chat"


@pytest.mark.parametrize(("made_by", "kind"), [("base", "base"), ("chat", "chat"), ("sft", "chat"), ("rl", "chat")])
def test_a_tuned_model_is_one_to_chat_with(tmp_path: Path, made_by: str, kind: str) -> None:
    (tmp_path / "puna.json").write_text(f'{{"stage": "{made_by}"}}')
    assert load_stage(tmp_path) == kind
