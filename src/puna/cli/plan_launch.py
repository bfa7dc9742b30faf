"""From a plan to launch files: the training recipe with the plan's batch and precision, and what `plan.emit` wants."""

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from puna.cli.plan_target import Target
from puna.core.errors import PunaError
from puna.model.layout import Layout
from puna.plan.answer import Answer
from puna.plan.jobs import RECOMPUTE, SHARDING
from puna.plan.predict import Prediction, describe_layout
from puna.plan.words import span

if TYPE_CHECKING:
    from puna.plan.emit import Emitted


def write_launch(kind: str, target: Target, answer: Answer, folder: Path) -> "Emitted":
    """Write the launch files of the plan into `folder`. Raises PunaError where it does not fit, or `emit` refuses."""
    from puna.plan.emit import Launch, emit

    best, question = answer.best, answer.question
    if not best.fits:
        raise PunaError("The plan does not fit the memory, so nothing was written.", "Plan without --emit to see why.")
    nodes = -(-question.accelerators // question.accelerator.node_size)
    if question.accelerators % nodes:
        raise PunaError(
            f"{question.accelerators} accelerators do not fill nodes of {question.accelerator.node_size}.",
            "Give a --fleet of whole nodes.",
        )
    every = max(1, round(answer.goodput.interval_seconds / best.step_seconds))
    job = Launch(
        name=_job_name(target.name),
        recipe=_recipe_text(target, best, answer.tokens),
        layout=launch_layout(best),
        accelerator=question.accelerator,
        nodes=nodes,
        accelerators_per_node=question.accelerators // nodes,
        micro_batch=int(best.layout["micro_batch"]),
        checkpoint_every=every,
        expected_step_seconds=best.step_seconds,
        expected_tokens_per_second=best.tokens_per_second,
        notes=(
            f"Planned as {describe_layout(best.layout, question.stack)} on stack {question.stack}.",
            f"About {span(answer.days.value * 86400)} with {answer.interruptions.value:.3g} interruptions.",
        ),
    )
    return emit(kind, job, folder)


def launch_layout(best: Prediction) -> Layout:
    """The plan's layout as the trainer names it: sharding tells how the data-parallel ranks divide."""
    layout, dp = best.layout, int(best.layout["dp"])
    sharding = SHARDING[layout["sharding"]]
    shard = dp
    if sharding == "ddp":
        shard = 1
    elif sharding == "hsdp":
        domain = max(1, best.question.accelerator.link_domain // int(layout["tp"]))
        shard = max(size for size in range(1, min(dp, domain) + 1) if dp % size == 0)
    return Layout(
        dp_replicate=dp // shard, dp_shard=shard, tp=int(layout["tp"]), cp=int(layout["cp"]), pp=int(layout["pp"])
    )


def _recipe_text(target: Target, best: Prediction, tokens: float) -> str:
    """The target's recipe, or one for its shape, with what the plan settled: batch, precision, recomputation."""
    tree: dict[str, Any] = tomllib.loads(target.recipe_text) if target.recipe_text else {}
    if not tree and target.config is None:
        raise PunaError(
            f"puna train has no network for {target.name}, so there is nothing to launch.",
            "Plan a dense Llama, or leave --emit out.",
        )
    if not tree and target.config:
        shape = target.config.model_dump(exclude_none=True)
        tree = {"corpus": "", "model": {"preset": target.name} if target.config.preset else shape}
    question, train = best.question, dict(tree.get("train", {}))
    if target.recipe is None or tokens != target.recipe.total_steps * target.recipe.tokens_per_step:
        train |= {"tokens": round(tokens), "steps": 0}
    precision = {"fp32": "fp32", "bf16": train.get("precision", "mixed")}.get(question.precision, "mixed")
    again = RECOMPUTE[best.layout["recompute"]]
    train |= {
        "seq_len": question.seq_len,
        "batch": question.batch,
        "precision": precision,
        "fp8": question.precision not in ("fp32", "bf16"),
        "checkpointing": {"none": "none", "full": "full"}.get(again, "selective"),
    }
    return tomli_w.dumps({**tree, "train": train})


def _job_name(name: str) -> str:
    label = "".join(sign if sign.isalnum() else "-" for sign in name.lower()).strip("-")
    return label if label[:1].isalpha() else f"job-{label}"
