"""The demo's second half: three abilities, before and after tuning, beside a control. A short `puna tune all`.

    measure -> SFT on a few demonstrations -> measure -> RL against the verifiers    -> measure
                                                     \\-> as long a time of more SFT -> measure

Demonstrations are few, and more steps on them soon teach nothing new; checking an answer costs nothing, so
reinforcement has new problems without end. Which of the two is worth more in so short a time is what the control is
for, and the table shows it whoever wins. All are measured on the same problems, which no stage was trained on.

bench/tune_demo.py measures these settings with three seeds; docs/log.md tells how they were found.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.core.console import say
from puna.core.errors import PunaError
from puna.core.recipe import check, load

if TYPE_CHECKING:
    from puna.train.measure.machine import Machine


@dataclass(frozen=True)
class Ability:
    """Something to learn: a task at a level, from so many demonstrations."""

    name: str
    task: str
    level: int
    demonstrations: int
    often: float = 1.0
    """How often SFT shows each of them, beside those of the other abilities."""
    share: float = 1.0
    """Of reinforcement's problems."""


ABILITIES = (
    Ability("Code", "code.synthesis", 2, demonstrations=20, often=2.0),
    Ability("Reasoning", "rewriting.list", 1, demonstrations=60, share=1.5),
    Ability("Planning", "planning.grid", 1, demonstrations=60, share=1.5),
)
# Where nothing may run programs: what a program prints, which is checked without running anything.
TRACING = Ability("Code", "code.tracing", 1, demonstrations=100)
STAGES = {
    "before": "before",
    "1-sft": "after SFT",
    "1-rl": "after RL",
    "1-rl-control": "control: more SFT",
}
SFT_STEPS = 64
"""Enough to know the demonstrations by heart (a training loss of 0.002). After 32 steps, at a loss of 0.13,
reinforcement spends half its time learning to write answers at all (docs/log.md, 2026-11-30)."""
SFT_SHARE, MEASURE_SHARE = 0.2, 0.14
"""Of the time: SFT at most, and measuring. RL and its control halve the rest."""
PROBLEMS, MAX_TOKENS = 400, 36
SFT_BATCH, RL_BATCH, ANSWERS = 6, 16, 8
SFT_LEN, RL_LEN = 256, 384
RL_TOKENS = 220
"""A step of reinforcement, everything in it, takes about as long as SFT on so many tokens for each of its problems."""


def tune_demo(
    model: Path,
    run_dir: Path,
    *,
    seconds: float,
    machine: "Machine",
    pace: float = 1.0,
    seed: int = 0,
    observers: Sequence[Callable[[dict[str, Any]], None]] = (),
) -> list[dict[str, Any]]:
    """Tune the demo's model for about so many seconds, all measuring included; the end is run_dir/model.

    pace: what a step takes, over what is predicted for it. Returns rows for `train.report.abilities`. What an
    interrupted call left in run_dir is continued. Raises PunaError when it was interrupted.
    """
    from puna.tasks.catalogue import baseline, find
    from puna.tune.way.recipe import AllRecipe
    from puna.tune.way.report import ability_rows
    from puna.tune.way.run import run

    chosen = _possible(ABILITIES)
    sft_steps, rl_steps = _steps(seconds, pace * _step_seconds(model, machine))
    stage_seconds = (1 - MEASURE_SHARE - SFT_SHARE / 2) * seconds / 2
    problems = max(12, min(PROBLEMS, int(1.2 * seconds)))
    tree = {
        "stage": "all",
        "name": "demo-tune",
        "model": str(model),
        "average": False,
        "measure": {
            "tasks": [{"name": one.task, "levels": [one.level]} for one in chosen],
            "problems": problems,
            "samples": 0,  # the likeliest answer alone: more problems tell more than more answers to each
            "max_tokens": MAX_TOKENS,
        },
        **sections(chosen, sft_steps=sft_steps, rl_steps=rl_steps, rl_seconds=stage_seconds, seed=seed),
    }
    if (run_dir / "recipe.toml").exists():
        tree = load(AllRecipe, run_dir / "recipe.toml").value.model_dump(mode="json")
    event = run(check(AllRecipe, tree, "the demo's tuning"), run_dir, observers=observers, machine=machine)
    if event["kind"] != "end":
        detail = event["detail"].partition(";")[0]
        raise PunaError(f"{detail[0].upper()}{detail[1:]}.", "The same command continues from there.")
    rows = ability_rows(run_dir)
    for row, one in zip(rows, chosen, strict=True):
        row |= {"ability": one.name, "about": find(one.task).levels[one.level - 1]}
        row["kept"] = STAGES.get(Path(event["model"]).parent.name, STAGES["before"])
        row["constant"] = baseline(one.task, one.level).score
        for stage in row["stages"]:
            stage["stage"] = STAGES[stage["stage"]]
    return rows


def sections(
    abilities: Sequence[Ability] = ABILITIES, *, sft_steps: int, rl_steps: int, rl_seconds: float = 0.0, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """The recipes of both stages, "sft" and "rl", less the model that they start from.

    rl_seconds: of reinforcement, promised; 0: none. seed: of both stages.
    """
    tasks = [{"name": one.task, "levels": [one.level]} for one in abilities]
    shown = [{"count": one.demonstrations, "share": one.often * one.demonstrations} for one in abilities]
    return {
        "sft": {
            "train": {"steps": sft_steps, "batch": SFT_BATCH, "seq_len": SFT_LEN, "seed": seed},
            "optimizer": _muon(matrices=0.01, tables=1e-3),
            "data": {"tasks": [task | count for task, count in zip(tasks, shown, strict=True)]},
        },
        "rl": {
            "tasks": [{**task, "share": one.share} for task, one in zip(tasks, abilities, strict=True)],
            "train": {"steps": rl_steps, "batch": RL_BATCH, "seq_len": RL_LEN, "final": "last", "seed": seed},
            "optimizer": _muon(matrices=2e-3, tables=3e-4),
            "schedule": {"warmup": 0.1, "decay": 0.3, "seconds": rl_seconds},
            "rollout": {"samples": ANSWERS, "max_tokens": MAX_TOKENS},
            # A demo too short to learn much still shows all its stages.
            "curriculum": {"refill": 1, "min_pass": 0.0},
            "measure": {"problems": 0},  # the stages are measured apart
            "log": {"every": 2, "eval_every": 0},
            "checkpoint": {"every": 40},  # where to go back to if it collapses
        },
    }


def _muon(*, matrices: float, tables: float) -> dict[str, Any]:
    return {"kind": "muon", "matrix_lr": matrices, "lr": tables, "embedding_lr": tables, "head_lr": tables}


def _steps(seconds: float, sft_step: float) -> tuple[int, int]:
    """Steps of SFT and RL for about so many seconds. sft_step: seconds of one step of SFT."""
    sft = max(8, min(SFT_STEPS, int(SFT_SHARE * seconds / sft_step)))
    rl_step = sft_step * RL_BATCH * RL_TOKENS / (SFT_BATCH * SFT_LEN)
    left = (1 - MEASURE_SHARE) * seconds - sft * sft_step
    return sft, max(4, int(left / 2 / rl_step))


def _step_seconds(model: Path, machine: "Machine") -> float:
    """What a step of SFT is expected to take here."""
    from puna.model.store import load_config
    from puna.train.planning.step_time import expected_step
    from puna.tune.sft.recipe import SFTRecipe

    tree = sections(sft_steps=1, rl_steps=1)["sft"] | {"stage": "sft", "model": str(model)}
    recipe = check(SFTRecipe, tree, "the demo's SFT")
    step = expected_step(recipe.as_training(load_config(model)), machine, 1)
    assert step is not None
    return step.step_seconds


def _possible(abilities: Sequence[Ability]) -> tuple[Ability, ...]:
    """The abilities that can be checked here: programs need a sandbox."""
    from puna.sandbox.run import run_python
    from puna.tasks.catalogue import find
    from puna.tasks.sandboxed import FLOOR

    try:
        run_python("", floor=FLOOR)
    except PunaError as error:
        say(f"{error} So the model learns to trace programs instead of writing them.")
        return tuple(TRACING if find(one.task).code else one for one in abilities)
    return tuple(abilities)
