"""From an estimate to launch files: the training recipe with the plan's batch, precision and layout, for `emit`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from puna.core.errors import PunaError
from puna.plan.launch.emit import Emitted, emit
from puna.plan.launch.job import Launch
from puna.plan.layouts.predict import Question, describe_layout
from puna.plan.output.format import span
from puna.plan.run.estimate import RunEstimate


def write_launch(kind: str, name: str, recipe: Mapping[str, Any], estimate: RunEstimate, folder: Path) -> Emitted:
    """Write the launch files of a planned run into `folder`. recipe: its training recipe, as a tree of plain values.

    Raises PunaError where the plan does not fit the memory, or where `emit` refuses.
    """
    return emit(kind, launch_of(name, recipe, estimate), folder)


def launch_of(name: str, recipe: Mapping[str, Any], estimate: RunEstimate) -> Launch:
    """The planned run as a job on whole nodes. Raises PunaError where it does not fit the memory or the nodes."""
    best, question = estimate.best, estimate.question
    if not best.fits:
        raise PunaError("The plan does not fit the memory, so nothing was written.", "Plan without --emit to see why.")
    nodes = -(-question.accelerators // question.accelerator.node_size)
    if question.accelerators % nodes:
        raise PunaError(
            f"{question.accelerators} accelerators do not fill nodes of {question.accelerator.node_size}.",
            "Give a --fleet of whole nodes.",
        )
    return Launch(
        name=_job_name(name),
        recipe=tomli_w.dumps(_with_batch(recipe, question)),
        layout=best.layout,
        accelerator=question.accelerator,
        nodes=nodes,
        accelerators_per_node=question.accelerators // nodes,
        checkpoint_every=max(1, round(estimate.goodput.interval_seconds / best.step_seconds)),
        expected_step_seconds=best.step_seconds,
        expected_tokens_per_second=best.tokens_per_second,
        notes=(
            f"Planned as {describe_layout(best.layout, question.stack)} on stack {question.stack}.",
            f"About {span(estimate.days.value * 86400)} with {estimate.interruptions.value:.3g} interruptions.",
        ),
    )


def _with_batch(recipe: Mapping[str, Any], question: Question) -> dict[str, Any]:
    """The recipe with the batch and the precision that were planned."""
    train = dict(recipe.get("train", {}))
    precision = {"fp32": "fp32", "bf16": train.get("precision", "mixed")}.get(question.precision, "mixed")
    train |= {
        "seq_len": question.seq_len,
        "batch": question.batch,
        "precision": precision,
        "fp8": question.precision not in ("fp32", "bf16"),
    }
    return {**recipe, "train": train}


def _job_name(name: str) -> str:
    label = "".join(sign if sign.isalnum() else "-" for sign in name.lower()).strip("-")
    return label if label[:1].isalpha() else f"job-{label}"
