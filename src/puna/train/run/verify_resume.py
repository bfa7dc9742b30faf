"""Verify, with a recipe on this machine, that stopping and resuming changes nothing.

The recipe is trained for a few steps straight through; trained again and killed with SIGKILL at a random step; resumed
from what the killed run left. Every step's loss must be the same to the last bit, and so must the final weights. Then
the killed run is resumed by more processes, killed once more, and resumed by still more: every row of every batch must
be the one the straight run saw (compared by hash), and losses may differ only as sums in another order do.
`verify_layouts` hands one run through tensor, pipeline and context parallelism in the same way.

Each run has its own processes, started from here with this module as their program. The kill comes from inside, right
before the chosen step, so no clean-up can run.
"""

import dataclasses
import hashlib
import json
import math
import os
import random
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.core.console import say
from puna.core.errors import PunaError
from puna.core.files import write_text
from puna.core.recipe import dump
from puna.data.corpus import Corpus
from puna.model.layout import LayoutConfig
from puna.train.measure.machine import measure
from puna.train.recipe import Recipe
from puna.train.run.launch import launch
from puna.train.run.metrics import read_metrics

# Losses of the same rows, shared by a different number of processes: only the order of sums differs.
TOLERANCE = 1e-5
# bf16 has 8 bits of mantissa: different rounding shows in the third digit.
TOLERANCE_BF16 = 2e-2


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison with the straight run.

    compared: number of values; passed: whether all agree.
    """

    what: str
    compared: int
    passed: bool
    detail: str


def verify_resume(
    recipe: Recipe, folder: Path, *, steps: int = 20, processes: Sequence[int] = (1, 2, 4)
) -> list[Check]:
    """Run the verification in `folder` and return what was compared.

    The runs straight, killed and elastic stay in the folder. recipe: must name a corpus directory. steps: length of
    each run, at least 8. processes: the first number makes the straight, the killed and the resumed run; each further
    one continues the run from the one before.
    Raises PunaError when a run fails for another reason than being killed.
    """
    if steps < 8:
        raise PunaError(f"{steps} steps are too few for two kills.", "Use --steps of at least 8.")
    if any(recipe.train.batch % count for count in processes) or not processes or min(processes) < 1:
        raise PunaError(
            f"train.batch = {recipe.train.batch} rows cannot be divided evenly among {', '.join(map(str, processes))} "
            "processes.",
            "Choose --nproc among its divisors.",
        )
    Corpus.open(Path(recipe.corpus))
    every = steps // 5 or 1
    recipe = _prepared(recipe, steps, every)
    runner = _Runner(folder, recipe)
    straight, killed, elastic = folder / "straight", folder / "killed", folder / "elastic"

    runner.run("Training straight through", straight, processes[0])
    die_at = random.randint(every + 1, 2 * every)
    runner.run("Training again, to be killed", killed, processes[0], die_at=die_at)
    shutil.copytree(killed, elastic)
    runner.run("Resuming", killed, processes[0], resume=True)
    resumed_at = _resumed_at(killed)
    checks = [
        _same_batches(straight, killed, f"killed before step {die_at + 1}, resumed from {resumed_at}: rows of batches"),
        _same_losses(straight, killed, steps, 0.0, "the same run: losses, bit for bit"),
        _same_weights(straight, killed),
    ]
    path = str(processes[0])
    for number, count in enumerate(processes[1:], 2):
        last = number == len(processes)
        # Each continues after at least one more checkpoint was written, and is then killed as well.
        die_at = steps if last else min(steps - 1, die_at + random.randint(every, 2 * every))
        path += f" -> {count}"
        runner.run(f"Resuming with {count} processes", elastic, count, resume=True, die_at=None if last else die_at)
    if len(processes) > 1:
        exact = read_metrics(straight)[0]["precision"] == "fp32"
        tolerance = TOLERANCE if exact else TOLERANCE_BF16
        checks += [
            _same_batches(straight, elastic, f"processes {path}: rows of batches"),
            _same_losses(straight, elastic, steps, tolerance, f"processes {path}: losses, to {tolerance:g}"),
        ]
    return checks


# What `--layouts` goes through: each takes the run over from the one before, on as many processes as it needs.
LAYOUTS: tuple[Mapping[str, int], ...] = ({"tp": 2}, {"pp": 2}, {"cp": 2}, {"tp": 2, "pp": 2}, {"dp_shard": 2, "tp": 2})


def verify_layouts(
    recipe: Recipe, folder: Path, *, steps: int = 20, layouts: Sequence[Mapping[str, int]] = LAYOUTS
) -> list[Check]:
    """One run handed from layout to layout, killed each time, beside one straight through on a single process.

    The rest as in `verify_resume`. Layouts that the model or the batch cannot have are left out, and named.
    """
    if steps < 2 * len(layouts):
        raise PunaError(f"{steps} steps are too few for {len(layouts)} kills.", f"Give --steps of {2 * len(layouts)}.")
    Corpus.open(Path(recipe.corpus))
    checks, taken = [], []
    for sizes in layouts:
        layout = LayoutConfig(**{"dp_shard": 1, **sizes})
        problem = layout.problem_with(recipe.model, recipe.train.seq_len)
        count = math.prod(sizes.values())
        try:
            layout.resolve(count, batch=recipe.train.batch, micro_batch=recipe.train.micro_batch)
        except PunaError as error:
            problem = problem or str(error)
        if problem:
            checks.append(Check(f"{_words(sizes)}: left out", 0, True, problem))
        else:
            taken.append((sizes, count))
    recipe = _prepared(recipe, steps, 1)
    runner = _Runner(folder, recipe)
    straight, moved = folder / "straight", folder / "layouts"
    runner.run("Training straight through", straight, 1)
    stretch = max(1, steps // (len(taken) + 1))
    runner.run("Training again, to be killed", moved, 1, die_at=stretch)
    path = "1 process"
    for number, (sizes, count) in enumerate(taken, 2):
        last = number == len(taken) + 1
        path += f" -> {_words(sizes)}"
        die_at = None if last else number * stretch
        runner.run(f"Resuming with {_words(sizes)}", moved, count, resume=True, die_at=die_at, layout=sizes)
    exact = read_metrics(straight)[0]["precision"] == "fp32"
    tolerance = TOLERANCE if exact else TOLERANCE_BF16
    return [
        *checks,
        _same_batches(straight, moved, f"{path}: rows of batches"),
        _same_losses(straight, moved, steps, tolerance, f"{path}: losses, to {tolerance:g}"),
    ]


def _words(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{name} {size}" for name, size in sizes.items())


def _prepared(recipe: Recipe, steps: int, every: int) -> Recipe:
    train = recipe.train.model_copy(update={"steps": steps, "tokens": 0})
    log = recipe.log.model_copy(
        update={"every": 1, "eval_every": 0, "sample_every": 0, "eval_bytes": 1, "tensorboard": False}
        | {"wandb": "", "trackio": "", "profile": False}
    )
    kept = recipe.checkpoint.model_copy(update={"every": every, "keep": steps, "keep_every": 0})
    return recipe.model_copy(update={"train": train, "log": log, "checkpoint": kept})


class _Runner:
    """Starts the runs of one verification."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.recipe_file = folder / "recipe.toml"
        write_text(self.recipe_file, dump(recipe))
        self.machine = dataclasses.asdict(dataclasses.replace(measure(), rates=None))  # no prediction is needed

    def run(
        self,
        note: str,
        run_dir: Path,
        processes: int,
        *,
        resume: bool = False,
        die_at: int | None = None,
        layout: Mapping[str, int] | None = None,
    ) -> None:
        say(f"{note} ({processes} {'process' if processes == 1 else 'processes'}) …")
        order: dict[str, Any] = {"recipe": str(self.recipe_file), "run_dir": str(run_dir), "machine": self.machine}
        order |= {"resume": resume, "die_at": die_at, "layout": dict(layout or {})}
        code = launch([sys.executable, "-m", "puna.train.run.verify_resume", json.dumps(order)], processes)
        if code != (0 if die_at is None else 128 + signal.SIGKILL):
            raise PunaError(f"The run in {run_dir} ended with exit code {code}.", "Its last output is above.")


# -- comparing ---------------------------------------------------------------------------------------------------------


def _same_losses(straight: Path, other: Path, steps: int, tolerance: float, what: str) -> Check:
    want, have = _losses(straight), _losses(other)
    missing = [step for step in range(1, steps + 1) if step not in have or step not in want]
    if missing:
        return Check(what, steps, False, f"step {missing[0]} is missing")
    apart = {step: _distance(want[step], have[step]) for step in range(1, steps + 1)}
    worst = max(apart, key=lambda step: apart[step])
    different = [step for step, distance in apart.items() if not distance <= tolerance]
    if different:
        first = different[0]
        return Check(what, steps, False, f"step {first}: {have[first]} instead of {want[first]}")
    return Check(what, steps, True, "identical" if apart[worst] == 0 else f"at most {apart[worst]:.1e} apart")


def _distance(left: float | None, right: float | None) -> float:
    if left is None or right is None:
        return 0.0 if left is right else float("inf")
    return abs(left - right)


def _same_batches(straight: Path, other: Path, what: str) -> Check:
    """Compare every row that any process of `other` trained on.

    This includes steps that were lost and repeated.
    """
    want = {(step, row): digest for step, row, digest in _rows(straight)}
    seen = list(_rows(other))
    wrong = [(step, row) for step, row, digest in seen if want.get((step, row)) != digest]
    missing = set(want) - {(step, row) for step, row, _ in seen}
    if wrong or missing:
        step, row = (wrong or sorted(missing))[0]
        return Check(what, len(seen), False, f"step {step + 1}, row {row} {'differs' if wrong else 'is missing'}")
    return Check(what, len(seen), True, "identical")


def _same_weights(straight: Path, other: Path) -> Check:
    want, have = _weights_hash(straight), _weights_hash(other)
    detail = f"sha256 {want[:12]}" if want == have else f"sha256 {have[:12]} instead of {want[:12]}"
    return Check("the same run: final weights, by hash", 1, want == have, detail)


def _losses(run_dir: Path) -> dict[int, float | None]:
    return {event["step"]: event["loss"] for event in read_metrics(run_dir) if event["kind"] == "train"}


def _resumed_at(run_dir: Path) -> str:
    found = [event["resumed_from"] for event in read_metrics(run_dir) if event["kind"] == "start"]
    return "the beginning" if found[-1] is None else f"step {found[-1]}"


def _rows(run_dir: Path) -> list[tuple[int, int, str]]:
    lines = (line for path in sorted(run_dir.glob("rows-*.jsonl")) for line in path.read_text().splitlines())
    parsed = (json.loads(line) for line in lines)
    return [(line["step"], line["first"] + i, digest) for line in parsed for i, digest in enumerate(line["rows"])]


def _weights_hash(run_dir: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted((run_dir / "model").glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


# -- one process of one run --------------------------------------------------------------------------------------------


def run_order(order: dict[str, Any], environment: dict[str, str]) -> None:
    """Train as `puna train` does, recording row hashes and, if ordered, dying before a step.

    order: recipe, run_dir, machine, resume, die_at (written by `_Runner`). environment: set before torch is imported.
    """
    os.environ.update(environment)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
    import torch

    from puna.core.recipe import load
    from puna.train.measure.machine import Machine
    from puna.train.pretrain import Pretraining, PretrainingBatch, train

    class Recorder(Pretraining):
        def batch(self, data_step: int) -> list[PretrainingBatch]:
            parts = super().batch(data_step)
            pairs = [pair for part in parts for pair in zip(part.rows.ids.cpu(), part.rows.targets.cpu(), strict=True)]
            rows = [hashlib.sha256(i.numpy().tobytes() + t.numpy().tobytes()).hexdigest()[:16] for i, t in pairs]
            line = json.dumps({"step": self.run.step, "first": self.run.share.first, "rows": rows})
            name = f"rows-{self.run.world.size}-{self.run.world.rank}.jsonl"
            with open(self.run.run_dir / name, "a", encoding="utf-8") as file:
                file.write(line + "\n")
            return parts

    if torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)
    die_at = order["die_at"]
    words = [f"layout.{name}={size}" for name, size in order.get("layout", {}).items()]
    recipe = load(Recipe, Path(order["recipe"]), words).value
    hooks = {} if die_at is None else {die_at: lambda _: os.kill(os.getpid(), signal.SIGKILL)}
    machine = Machine(**order["machine"])
    train(recipe, Path(order["run_dir"]), resume=order["resume"], hooks=hooks, machine=machine, objective=Recorder)


if __name__ == "__main__":
    try:
        run_order(json.loads(sys.argv[1]), {})
    except PunaError as error:
        sys.exit(f"puna verify-resume: {error}")
