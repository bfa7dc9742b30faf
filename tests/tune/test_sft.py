"""Supervised fine-tuning: the loss equals transformers', a stage resumes exactly, and its results are measured."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM as Reference

from puna.cli.main import main
from puna.core.errors import PunaError
from puna.core.recipe import check
from puna.train.measure.machine import Machine
from puna.train.parallel import World
from puna.train.run.metrics import read_metrics
from puna.tune.rows.dialogues import read_dialogues
from puna.tune.rows.examples import Example, best_fit, example_of, to_tensors
from puna.tune.sft.objective import SFT, packed_loss
from puna.tune.sft.recipe import SFTRecipe
from puna.tune.stage import prepare_stage, run_stage


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jsonl"
    rows = [{"prompt": f"Count to {i}.", "response": " ".join(map(str, range(i)))} for i in range(2, 30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def values(model_dir: Path, chat: Path) -> dict[str, Any]:
    return {
        "stage": "sft",
        "model": str(model_dir),
        "train": {"steps": 6, "batch": 4, "micro_batch": 2, "seq_len": 96, "precision": "fp32"},
        "optimizer": {"lr": 0.003},
        "log": {"every": 1},
        "data": {"files": [{"path": str(chat)}], "tasks": [{"name": "arithmetic.addition"}]},
    }


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_metrics(run_dir) if event["kind"] == kind]


def test_the_loss_of_packed_rows_is_transformers_loss_of_each_dialogue(
    values: dict[str, Any], model_dir: Path, chat: Path, tmp_path: Path, machine: Machine
) -> None:
    stage = prepare_stage(
        check(SFTRecipe, values, "test"), tmp_path / "run", World(0, 1, torch.device("cpu")), machine=machine
    )
    made = [example_of(dialogue, stage.tokenizer, 96) for dialogue in read_dialogues(chat)]
    examples = [example for example in made if example is not None]
    packed = best_fit([len(example.inputs) for example in examples], 96, len(examples))
    assert len(packed) < len(examples)
    rows = to_tensors([[examples[index] for index in row] for row in packed], 96)
    count = int((rows.targets != -100).sum())
    loss, _ = packed_loss(stage, stage.model, rows, 1.0 / count)
    loss.backward()

    reference = Reference.from_pretrained(model_dir, dtype=torch.float32)
    total = torch.zeros(())
    for example in examples:
        logits = reference(input_ids=torch.tensor([example.inputs])).logits[0]
        targets = torch.tensor(example.targets)
        total = total + torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
    (total / count).backward()
    assert loss.item() == pytest.approx((total / count).item(), abs=1e-6)
    ours = stage.model.model.layers[0].self_attn.q_proj.weight.grad
    theirs = reference.model.layers[0].self_attn.q_proj.weight.grad
    assert ours is not None
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("chunk", [0, 1024])
def test_rows_in_which_nothing_counts_have_no_loss_and_no_gradient(
    values: dict[str, Any], tmp_path: Path, machine: Machine, chunk: int
) -> None:
    """One process's share of a batch may be all prompt."""
    values["train"]["loss_chunk"] = chunk
    stage = prepare_stage(
        check(SFTRecipe, values, "test"), tmp_path / "run", World(0, 1, torch.device("cpu")), machine=machine
    )
    rows = to_tensors([[Example([5, 6, 7], [-100, -100, -100])]], 96)
    loss, _ = packed_loss(stage, stage.model, rows, 1.0)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in stage.model.parameters())


def test_fine_tuning_learns_and_resumes_exactly(values: dict[str, Any], tmp_path: Path, machine: Machine) -> None:
    values["data"]["heldout"] = 0.2
    values["checkpoint"] = {"every": 3, "keep": 9}
    recipe = check(SFTRecipe, values, "test")
    assert run_stage(recipe, tmp_path / "straight", SFT, machine=machine)["kind"] == "end"
    measured = [event["metrics"] for event in events(tmp_path / "straight", "eval")]
    assert measured[-1]["loss"] < measured[0]["loss"] - 0.1
    assert measured[-1]["score"] == -measured[-1]["loss"]

    class Interrupted(SFT):
        def batch(self, data_step: int) -> Any:
            if data_step == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return super().batch(data_step)

    assert run_stage(recipe, tmp_path / "run", Interrupted, machine=machine)["event"] == "interrupted"
    assert run_stage(recipe, tmp_path / "run", SFT, resume=True, machine=machine)["kind"] == "end"
    train = events(tmp_path / "straight", "train")
    again = events(tmp_path / "run", "train")
    assert [event["loss"] for event in again] == [event["loss"] for event in train]
    assert train[0]["metrics"]["fill"] > 0.5
    assert train[0]["metrics"]["learned"] > 50


def test_speed_is_told_as_a_share_of_the_peak_where_every_weight_learns(
    values: dict[str, Any], tmp_path: Path, machine: Machine
) -> None:
    values["train"]["steps"] = 12
    values["log"]["profile"] = True
    run_stage(check(SFTRecipe, values, "test"), tmp_path / "all", SFT, machine=machine)
    assert all(line["mfu"]["full"] > line["mfu"]["causal"] > 0 for line in events(tmp_path / "all", "train"))
    assert list((tmp_path / "all" / "profile").glob("*.json*")), "a trace for Perfetto"
    values["train"]["steps"], values["log"]["profile"], values["lora"] = 1, False, {"rank": 2}
    run_stage(check(SFTRecipe, values, "test"), tmp_path / "adapters", SFT, machine=machine)
    assert [line["mfu"] for line in events(tmp_path / "adapters", "train")] == [None]
    values["train"]["fp8"] = True
    with pytest.raises(PunaError, match="adapters do not support fp8"):
        check(SFTRecipe, values, "test")
    del values["lora"]
    with pytest.raises(PunaError, match="this device has no fp8 units"):
        run_stage(check(SFTRecipe, values, "test"), tmp_path / "fp8", SFT, machine=machine)


def test_tasks_are_measured_before_and_after(values: dict[str, Any], tmp_path: Path, machine: Machine) -> None:
    values["measure"] = {
        "tasks": [{"name": "arithmetic.addition", "levels": [1]}],
        "problems": 4,
        "samples": 2,
        "max_tokens": 4,
    }
    run_stage(check(SFTRecipe, values, "test"), tmp_path / "run", SFT, machine=machine)
    measured = events(tmp_path / "run", "eval")
    assert [event["step"] for event in measured] == [0, 6]
    assert {"arithmetic.addition.1.greedy", "arithmetic.addition.1.pass@1", "score"} <= measured[0]["metrics"].keys()


def test_the_command_tunes_and_refuses_with_one_sentence(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tomli_w

    monkeypatch.setattr("puna.train.run_state.measure", lambda _: Machine("cpu", "test", 1, 8 << 30, {}, False))
    recipe = tmp_path / "sft.toml"
    recipe.write_text(tomli_w.dumps(values), encoding="utf-8")
    run_dir = tmp_path / "run"
    assert main(["recipe", "show", str(recipe)]) == 0
    assert "relative to the other sources" not in capsys.readouterr().err
    assert main(["tune", "sft", str(recipe), "train.steps=2", "--run-dir", str(run_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "end"
    assert (run_dir / "model" / "model.safetensors").is_file()

    def refused(*words: str) -> str:
        assert main(["tune", *words]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    assert "already contains a run" in refused("sft", str(recipe), "--run-dir", str(run_dir))
    assert "Did you mean 'sft'?" in refused("sfft", str(recipe))
    assert "unknown key 'train.stepps'" in refused("sft", str(recipe), "train.stepps=5")
    assert "both empty" in refused("sft", str(recipe), "data.files=[]", "data.tasks=[]", "--run-dir", f"{run_dir}2")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "wizard", "content": "Hi"}]}\n', encoding="utf-8")
    words = ["sft", str(recipe), f'data.files=[{{path = "{bad}"}}]', "--run-dir", str(tmp_path / "b")]
    assert "line 1: message 1 has the role 'wizard'" in refused(*words)


def test_a_batch_in_which_nothing_counts_is_an_error(
    values: dict[str, Any], tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["puna.tune.rows.examples"]

    def masked(messages: Any, tokenizer: Any, **options: Any) -> Any:
        rendered = original(messages, tokenizer, **options)
        return rendered._replace(loss_mask=[0] * len(rendered.ids))

    original = module.render  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "render", masked)
    with pytest.raises(PunaError, match="have nothing to learn in"):
        run_stage(check(SFTRecipe, values, "test"), tmp_path / "run", SFT, machine=machine)
