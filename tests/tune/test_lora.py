"""LoRA: a new adapter has no effect, a merged one gives the same results, and PEFT agrees."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from puna.core.errors import PunaError
from puna.core.recipe import check
from puna.engine.generate import Engine, SamplingParams, load_engine
from puna.model.llama import LlamaForCausalLM
from puna.model.store import load_model
from puna.text.tokenizer import Tokenizer
from puna.train.factory import FromCheckpoint
from puna.train.measure.machine import Machine
from puna.train.run_state import trainable
from puna.tune.lora import LoRA, merge_adapter, merged_state
from puna.tune.recipe import LoRAConfig
from puna.tune.sft.objective import SFT
from puna.tune.sft.recipe import SFTRecipe
from puna.tune.stage import run_stage

GOLDEN = Path(__file__).parent / "golden" / "lora.json"
IDS = torch.tensor([[1, 5, 9, 200, 31, 77]])


def adapted(model_dir: Path, **values: Any) -> tuple[LlamaForCausalLM, LoRAConfig]:
    config = LoRAConfig.model_validate({"rank": 3, "alpha": 5.0, **values})
    factory = LoRA(FromCheckpoint(model_dir), config)
    with torch.device("meta"):
        model = factory.make()
    model.to_empty(device="cpu")
    with torch.no_grad():
        factory.fill(model, 0)
    return model, config


@torch.no_grad()
def shake(model: LlamaForCausalLM) -> None:
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.normal_(0.0, 0.2, generator=generator)


@torch.no_grad()
def test_a_fresh_adapter_does_nothing_and_alone_is_trained(model_dir: Path) -> None:
    model, _ = adapted(model_dir, targets=["q_proj", "down_proj"])
    assert torch.equal(model(IDS), load_model(model_dir)(IDS))
    assert {name.rpartition(".")[2] for name in trainable(model)} == {"lora_a", "lora_b"}
    assert len(trainable(model)) == 2 * 2 * 2  # layers, targets, A and B
    again, _ = adapted(model_dir, targets=["q_proj", "down_proj"])
    name = "model.layers.1.self_attn.q_proj.lora_a"
    assert torch.equal(model.state_dict()[name], again.state_dict()[name])


@torch.no_grad()
def test_merged_is_what_the_adapter_was(model_dir: Path) -> None:
    model, config = adapted(model_dir)
    shake(model)
    plain = load_model(model_dir)
    before = plain(IDS)
    plain.load_state_dict(merged_state(model.state_dict(), config.scale))
    assert torch.allclose(plain(IDS), model(IDS), atol=1e-5)
    assert not torch.allclose(plain(IDS), before, atol=0.1)


def test_an_engine_generates_with_adapters_and_takes_merged_weights(model_dir: Path) -> None:
    model, config = adapted(model_dir)
    shake(model)
    tokenizer = Tokenizer.load(model_dir)
    params = SamplingParams(max_tokens=8, temperature=0.0)
    through = Engine(model, tokenizer).generate([IDS[0].tolist()], params)[0]
    engine = load_engine(model_dir, fast=True, dtype=torch.float32)
    engine.update_weights(merged_state(model.state_dict(), config.scale).items())
    assert engine.generate([IDS[0].tolist()], params)[0].ids == through.ids


def test_a_stage_with_adapters_ends_merged_and_as_an_adapter(model_dir: Path, tmp_path: Path, machine: Machine) -> None:
    values = {
        "model": str(model_dir),
        "train": {"steps": 4, "batch": 2, "seq_len": 64, "precision": "fp32"},
        "optimizer": {"lr": 0.05},
        "lora": {"rank": 4, "targets": ["q_proj", "v_proj"]},
        "checkpoint": {"every": 2},
        "data": {"tasks": [{"name": "arithmetic.addition"}]},
    }
    recipe = check(SFTRecipe, values, "test")
    run_stage(recipe, tmp_path / "run", SFT, machine=machine)
    before = load_file(model_dir / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}
    adapter = tmp_path / "run" / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"] == 8
    merge_adapter(model_dir, adapter, tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.allclose(merged[name], after[name], atol=1e-6) for name in after)


@torch.no_grad()
def test_peft_gives_the_same_logits(tmp_path: Path) -> None:
    """golden/make_lora.py recorded what PEFT computes with this adapter on this network."""
    golden = json.loads(GOLDEN.read_text())
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
    (base / "config.json").write_text(json.dumps(golden["config"]))
    (adapter / "adapter_config.json").write_text(json.dumps(golden["adapter_config"]))

    def tensors(named: dict[str, list[int]]) -> dict[str, torch.Tensor]:
        """Weights by a rule that needs no file: see make_lora.py."""
        made = {}
        for index, (name, shape) in enumerate(named.items()):
            numbers = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
            made[name] = (torch.sin(numbers * 0.37 + index) * 0.3).float().reshape(shape)
        return made

    save_file(tensors(golden["weights"]), base / "model.safetensors")
    save_file(tensors(golden["adapter"]), adapter / "adapter_model.safetensors")
    ids = torch.tensor([golden["ids"]])
    plain = load_model(base)(ids)
    assert torch.allclose(plain[0], torch.tensor(golden["plain"]), atol=1e-6)
    config = golden["adapter_config"]
    state = dict(load_model(base).state_dict())
    for theirs, tensor in tensors(golden["adapter"]).items():
        name = theirs.removeprefix("base_model.model.").removesuffix(".weight")
        state[name.replace("lora_A", "lora_a").replace("lora_B", "lora_b")] = tensor
    merged = load_model(base)
    merged.load_state_dict(merged_state(state, config["lora_alpha"] / config["r"]))
    assert torch.allclose(merged(ids)[0], torch.tensor(golden["adapted"]), atol=1e-6)


def test_what_cannot_be_adapted_or_merged_is_one_sentence(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(PunaError, match="Did you mean 'q_proj'"):
        adapted(model_dir, targets=["q_prj"])
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "use_dora": true}')
    with pytest.raises(PunaError, match=r"not a plain LoRA adapter \(use_dora\)"):
        merge_adapter(model_dir, tmp_path, tmp_path / "out")
