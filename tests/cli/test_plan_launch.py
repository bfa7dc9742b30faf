"""A plan's layout in the trainer's terms."""

import pytest

from puna.cli.plan_launch import launch_layout
from puna.model.config import ModelConfig
from puna.plan.hardware import find_accelerator
from puna.plan.jobs import SHARDING
from puna.plan.predict import Question, predict
from puna.plan.shape import from_config


@pytest.mark.parametrize(
    ("sharding", "tp", "dp", "replicate", "shard"),
    [
        ("ddp", 1, 16, 16, 1),
        ("zero2", 1, 16, 1, 16),
        ("zero3", 1, 16, 1, 16),
        ("hsdp", 1, 16, 2, 8),
        ("hsdp", 1, 12, 2, 6),
        ("hsdp", 1, 4, 1, 4),
        ("hsdp", 8, 2, 2, 1),
    ],
)
def test_sharding_becomes_copies_and_shards(sharding: str, tp: int, dp: int, replicate: int, shard: int) -> None:
    config = ModelConfig(preset="llama3-8b")
    question = Question(
        "llama3-8b", from_config(config), find_accelerator("h100"), tp * dp, 8192, 48 * dp, stack="torchtitan"
    )
    found = predict(question, {"tp": tp, "dp": dp, "sharding": SHARDING.index(sharding)}, values={})
    layout = launch_layout(found)
    assert (layout.dp_replicate, layout.dp_shard, layout.tp) == (replicate, shard, tp)
    assert layout.resolve(tp * dp) == layout
