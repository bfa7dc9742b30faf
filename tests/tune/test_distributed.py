"""Two processes fine-tune like one: rows are shared, the loss and the steps are the same."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from puna.train.run.metrics import read_metrics

ROWS = [
    {"prompt": f"Count to {i}.", "chosen": " ".join(map(str, range(i))), "rejected": "no " * i} for i in range(2, 20)
]


def tune(stage: str, recipe: Path, run_dir: Path, processes: int, *words: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "puna", "tune", stage, str(recipe), *words, "--run-dir", str(run_dir)]
    done = subprocess.run(
        [*command, "--nproc", str(processes)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [event for event in read_metrics(run_dir) if event["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "layout"),
    [("sft", "layout.dp_replicate=2"), ("dpo", "layout.dp_shard=2"), ("sft", "layout.tp=2"), ("dpo", "layout.tp=2")],
)
def test_two_processes_are_one(stage: str, layout: str, model_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": row["prompt"], "response": row["chosen"]} for row in ROWS] if stage == "sft" else ROWS
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "stage": stage,
        "model": str(model_dir),
        "train": {"steps": 3, "batch": 4, "micro_batch": 1, "seq_len": 96, "precision": "fp32"},
        "optimizer": {"lr": 0.003},
        "schedule": {"warmup": 0.0},
        "log": {"every": 1},
        "data": {"files": [{"path": str(data)}] if stage == "sft" else [str(data)], "heldout": 0.2},
    }
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tomli_w.dumps(values), encoding="utf-8")
    one = tune(stage, recipe, tmp_path / "one", 1)
    two = tune(stage, recipe, tmp_path / "two", 2, layout)
    assert [event["loss"] for event in two] == pytest.approx([event["loss"] for event in one], abs=2e-5)
    for name, value in one[0]["metrics"].items():
        assert two[0]["metrics"][name] == pytest.approx(value, abs=1e-4), name
    assert [event["tokens"] for event in two] == [event["tokens"] for event in one]
