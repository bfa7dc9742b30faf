"""The demo's second half: three abilities, before and after tuning, beside a control. A short `puna tune all`.

    measure -> SFT on a few demonstrations -> measure -> RL against the verifiers    -> measure
                                                     \\-> as long a time of more SFT -> measure

Demonstrations are few and repeated; checking an answer costs nothing, so reinforcement has new problems without end.
Which of the two is worth more in so short a time is what the control is for, and the table shows it whoever wins: in
the one run measured so far it was more SFT (docs/log.md, 2026-11-25). All are measured on the same problems, which no
stage was trained on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.core.console import say
from puna.core.errors import PunaError
from puna.core.recipe import check

if TYPE_CHECKING:
    from puna.train.machine import Machine


@dataclass(frozen=True)
class Ability:
    """Something to learn: a task at a level, from so many demonstrations."""

    name: str
    task: str
    level: int
    demonstrations: int
    share: float = 1.0
    """Of reinforcement's problems."""


ABILITIES = (
    Ability("Code", "code.synthesis", 2, demonstrations=30, share=2.0),
    Ability("Reasoning", "rewriting.list", 1, demonstrations=100, share=2.0),
    Ability("Planning", "planning.grid", 1, demonstrations=150),
)
# Where nothing may run programs: what a program prints, which is checked without running anything.
TRACING = Ability("Code", "code.tracing", 1, demonstrations=150)
STAGES = {
    "before": "before",
    "1-sft": "after SFT",
    "1-rl": "after RL",
    "1-rl-control": "control: more SFT",
}
SHARES = (0.28, 0.28)
"""Of the time: SFT, until more of it teaches little, and RL; the control has RL's, the rest is measuring."""
PROBLEMS, SAMPLES, MAX_TOKENS = 120, 4, 36
SEQ_LEN, SFT_BATCH, RL_BATCH, ANSWERS = 256, 6, 16, 8
_TABLE_RATES = ("lr", "embedding_lr", "head_lr")
RL_TOKENS = 220
"""Tokens that the trainer computes for a problem with its answers; the generator computes about as many."""
RL_COST = 1.5
"""Time of a step of reinforcement, as a multiple of what training on its tokens alone would take."""


def tune_demo(
    model: Path,
    run_dir: Path,
    *,
    seconds: float,
    machine: "Machine",
    observers: Sequence[Callable[[dict[str, Any]], None]] = (),
) -> list[dict[str, Any]]:
    """Tune the demo's model for about so many seconds, all measuring included; the end is run_dir/model.

    Returns rows for `train.abilities`. Raises PunaError when it was interrupted (`puna tune all --resume` goes on).
    """
    from puna.tasks.catalogue import baseline, find
    from puna.tune.way.recipe import AllRecipe
    from puna.tune.way.report import ability_rows
    from puna.tune.way.run import run

    chosen = _possible(ABILITIES)
    tree = recipe_tree(model, chosen, step_seconds=_step_seconds(model, machine), seconds=seconds)
    event = run(check(AllRecipe, tree, "the demo's tuning"), run_dir, observers=observers, machine=machine)
    if event["kind"] != "end":
        raise PunaError(event["detail"][0].upper() + event["detail"][1:] + ".")
    rows = ability_rows(run_dir)
    for row, one in zip(rows, chosen, strict=True):
        row |= {"ability": one.name, "about": find(one.task).levels[one.level - 1]}
        row["constant"] = baseline(one.task, one.level).score
        for stage in row["stages"]:
            stage["stage"] = STAGES[stage["stage"]]
    return rows


def recipe_tree(model: Path, abilities: Sequence[Ability], *, step_seconds: float, seconds: float) -> dict[str, Any]:
    """The recipe of all stages for about so many seconds. step_seconds: of one step of SFT."""
    sft_steps = max(8, int(SHARES[0] * seconds / step_seconds))
    rl_step = RL_COST * step_seconds * RL_BATCH * RL_TOKENS / (SFT_BATCH * SEQ_LEN)
    tasks = [{"name": one.task, "levels": [one.level]} for one in abilities]
    counts = [{"count": one.demonstrations, "share": one.demonstrations} for one in abilities]
    return {
        "stage": "all",
        "name": "demo-tune",
        "model": str(model),
        "average": False,
        "measure": {
            "tasks": tasks,
            "problems": max(12, min(PROBLEMS, int(seconds / 2))),
            "samples": SAMPLES,
            "max_tokens": MAX_TOKENS,
        },
        "sft": {
            "train": {"steps": sft_steps, "batch": SFT_BATCH, "seq_len": SEQ_LEN},
            "optimizer": {"kind": "muon", "matrix_lr": 0.01, **dict.fromkeys(_TABLE_RATES, 1e-3)},
            "data": {"tasks": [task | count for task, count in zip(tasks, counts, strict=True)]},
        },
        "rl": {
            "tasks": [{**task, "share": one.share} for task, one in zip(tasks, abilities, strict=True)],
            "train": {
                "steps": max(4, int(SHARES[1] * seconds / rl_step)),
                "batch": RL_BATCH,
                "seq_len": SEQ_LEN,
                "final": "last",
            },
            "optimizer": {"lr": 2e-4},
            "schedule": {"warmup": 0.1},
            "rollout": {"samples": ANSWERS, "max_tokens": MAX_TOKENS},
            "measure": {"problems": 1, "samples": 1},  # the stages are measured apart
            "curriculum": {"min_pass": 0.0},  # a demo too short to learn much still shows all its stages
            "log": {"every": 2, "eval_every": 0},
        },
    }


def _step_seconds(model: Path, machine: "Machine") -> float:
    """What a step of SFT is expected to take here."""
    from puna.model.store import load_config
    from puna.train.speed import expected_step
    from puna.tune.sft_recipe import SFTRecipe

    tree = recipe_tree(model, ABILITIES, step_seconds=1.0, seconds=1.0)["sft"] | {"stage": "sft", "model": str(model)}
    recipe = check(SFTRecipe, tree, "the demo's SFT")
    step = expected_step(recipe.as_training(load_config(model)), machine, 1)
    assert step is not None
    return step.step_seconds


def _possible(abilities: Sequence[Ability]) -> tuple[Ability, ...]:
    """The abilities that can be checked here: programs need a sandbox."""
    from puna.sandbox.run import run_python
    from puna.tasks.catalogue import find
    from puna.tasks.isolation import FLOOR

    try:
        run_python("", floor=FLOOR)
    except PunaError as error:
        say(f"{error} So the model learns to trace programs instead of writing them.")
        return tuple(TRACING if find(one.task).code else one for one in abilities)
    return tuple(abilities)
