"""Measure a stage on held-out problems, with its current weights in a temporary engine."""

from pathlib import Path

import torch

from puna.engine.generate import Engine
from puna.train.objective import SCORE
from puna.tune.measure import measure_tasks
from puna.tune.recipe import MeasureConfig
from puna.tune.rollout import make_generator, send_weights
from puna.tune.stage import Stage

_BATCH = 64


def measure_stage(stage: Stage, config: MeasureConfig) -> dict[str, float]:
    """Measure accuracy on a recipe's held-out problems.

    "score" is the mean greedy accuracy over tasks and levels. Empty when the recipe has no such problems. Every process
    must call it; the first one measures.
    """
    if not config.asked:
        return {}
    engine = _engine(stage, config) if stage.world.first or stage.sharded else None

    def measure() -> dict[str, float]:
        assert engine is not None
        measures: dict[str, float] = {}
        results = measure_tasks(
            engine,
            config.asked,
            problems=config.problems,
            samples=config.samples,
            max_tokens=config.max_tokens,
            instruct=config.instruct,
        )
        for result in results:
            name = f"{result.task}.{result.level}"
            measures[f"{name}.greedy"] = result.greedy or 0.0
            if result.pass_1 is not None and result.pass_k is not None:
                measures[f"{name}.pass@1"] = result.pass_1
                measures[f"{name}.pass@{result.k}"] = result.pass_k
        measures[SCORE] = sum(result.greedy or 0.0 for result in results) / len(results)
        return measures

    return stage.from_first(measure)


def _engine(stage: Stage, config: MeasureConfig) -> Engine:
    engine = make_generator(
        stage.config,
        stage.tokenizer,
        Path(stage.recipe.model),
        device=stage.device,
        dtype=torch.bfloat16 if stage.recipe.train.precision == "bf16" else torch.float32,
        max_batch=_BATCH,
        seq_len=4 * config.max_tokens + 512,  # room for a long problem and the turns of an episode
    )
    send_weights(stage.model, engine, lora=stage.recipe.lora)
    return engine
