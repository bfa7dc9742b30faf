"""What a few minutes of tuning improve in the demo's model: three abilities at four stages.

    puna demo ; python bench/tune_demo.py models/demo-base [--seeds 0 1 2]
    python bench/tune_demo.py models/demo-base --seeds 1 --raw seed1.json     # only one seed
    python bench/tune_demo.py --merge seed0.json seed1.json seed2.json

The stages are: before tuning, after fine-tuning on few demonstrations, after reinforcement, and after a control that
spent reinforcement's time on more fine-tuning instead. One task represents each ability; tasks, demonstrations and
settings are those of `puna.demo.tuning`, and stages are run with `puna tune sft` and `puna tune rl` as users run them.
Reinforcement has a fixed number of steps; the control gets as many fine-tuning steps as fit into reinforcement's
seconds, both measured in the same run, so the machine should be otherwise idle. A seed draws its own demonstrations.
Problems are held out by construction and the same for all; intervals are 95 %: Wilson's for greedy answers, over
problems for samples, each pooled over the seeds.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import common
from puna.core.statistics import clustered, wilson
from puna.demo.tuning import ABILITIES, MAX_TOKENS, SFT_STEPS, sections

TASKS = {one.name.lower(): (one.task, one.level) for one in ABILITIES}
LOGGED_EVERY = 10  # in steps of reinforcement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", help="directory of the untuned model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default 0 1 2)")
    parser.add_argument("--steps", type=int, default=200, help="steps of reinforcement (default 200)")
    parser.add_argument("--problems", type=int, default=100, help="held-out problems per task (default 100)")
    parser.add_argument("--samples", type=int, default=4, help="samples per problem (default 4)")
    parser.add_argument("--raw", type=Path, help="write the answers of these seeds to a file, for merging")
    parser.add_argument("--merge", type=Path, nargs="+", help="build the table from such files")
    args = parser.parse_args()
    if args.merge:
        write([json.loads(path.read_text(encoding="utf-8")) for path in args.merge])
        return
    measured: dict[str, list[dict[str, Any]]] = {"before": [measure(args.model, args)]}
    spent: dict[str, list[float]] = {}
    logs: list[dict[str, Any]] = []
    made = {"measured": measured, "seconds": spent, "rl": logs, "seeds": args.seeds, "steps": args.steps}
    made |= {"problems": args.problems, "samples": args.samples, "parameters": parameters(args.model)}
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            stages = one_seed(args.model, Path(folder) / str(seed), seed, args.steps)
            logs.append(stages.pop("rl_log"))
            for name, (model, seconds) in stages.items():
                measured.setdefault(name, []).append(measure(model, args))
                spent.setdefault(name, []).append(round(seconds, 1))
            shutil.rmtree(Path(folder) / str(seed))
    if args.raw:
        args.raw.write_text(json.dumps(made), encoding="utf-8")
        return
    write([made])


def write(parts: list[dict[str, Any]]) -> None:
    """Pool the results of several runs and store the table."""
    measured: dict[str, list[dict[str, Any]]] = {}
    spent: dict[str, list[float]] = {}
    for part in parts:
        for name, rows in part["measured"].items():
            if name == "before":
                measured[name] = rows  # the same model every time
            else:
                measured.setdefault(name, []).extend(rows)
        for name, seconds in part["seconds"].items():
            spent.setdefault(name, []).extend(seconds)
    table = {name: {ability: pooled(rows, ability) for ability in TASKS} for name, rows in measured.items()}
    show(table)
    settings = {
        **{name: parts[0][name] for name in ("parameters", "problems", "samples", "steps")},
        "tasks": {name: list(task) for name, task in TASKS.items()},
        **sections(sft_steps=SFT_STEPS, rl_steps=parts[0]["steps"]),
        "seeds": [seed for part in parts for seed in part["seeds"]],
        "threads": torch.get_num_threads(),
    }
    logs = [log for part in parts for log in part["rl"]]
    common.save("tune-demo", settings, {"table": table, "seconds": spent, "rl": logs})


def parameters(model: Path) -> int:
    """Number of parameters of the model."""
    from puna.model.store import load_config

    return load_config(model).num_parameters()


def one_seed(base: Path, folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """Model directory and seconds of each stage, and the course of reinforcement."""
    recipes = sections(sft_steps=SFT_STEPS, rl_steps=steps)
    recipes["rl"]["log"]["every"] = LOGGED_EVERY

    def run(stage: str, model: Path, name: str, **train: int) -> tuple[Path, float, list[dict[str, Any]]]:
        recipe = recipes[stage]
        return run_stage(stage, model, folder / name, {**recipe, "train": {**recipe["train"], "seed": seed, **train}})

    tuned, sft_seconds, _ = run("sft", base, "sft")
    reinforced, rl_seconds, events = run("rl", tuned, "rl")
    control_steps = max(1, round(SFT_STEPS * rl_seconds / sft_seconds))
    control, control_seconds, _ = run("sft", tuned, "control", steps=control_steps)
    log = [
        {"step": event["step"], **{key: event["metrics"].get(key) for key in LOGGED}}
        for event in events
        if event["kind"] == "train"
    ]
    return {
        "after fine-tuning": (tuned, sft_seconds),
        "after reinforcement": (reinforced, rl_seconds),
        "control: more fine-tuning": (control, control_seconds),
        "rl_log": {
            "seed": seed,
            "steps": log,
            "end": {key: events[-1].get(key) for key in ("step", "best", "finished")},
        },
    }


LOGGED = (
    "reward",
    "pass",
    "teaching",
    "entropy",
    "logprob_gap",
    "logprob_gap_max",
    "visible",
    "hidden",
    "time_generation",
    "time_reward",
    "time_learning",
    "time_rest",
)


def run_stage(
    name: str, model: Path, run_dir: Path, values: Mapping[str, Any]
) -> tuple[Path, float, list[dict[str, Any]]]:
    """Run a stage; returns its model directory, its seconds and its events."""
    from puna.tune.stages import check_stage, runner

    events: list[dict[str, Any]] = []
    recipe = check_stage({"stage": name, "model": str(model), **values}, "the benchmark's recipe")
    machine = _machine()
    begin = time.perf_counter()
    last = runner(name)(recipe, run_dir, observers=[events.append], machine=machine)
    if last["kind"] != "end":
        sys.exit(f"{name} was stopped.")
    seconds = time.perf_counter() - begin
    print(f"{run_dir.name}: {last['step']} steps in {seconds:.0f} s", file=sys.stderr, flush=True)
    return run_dir / "model", seconds, events


def _machine() -> Any:
    """A machine without measured rates.

    Rates are used only for a run's predictions, so they are not measured again for each stage.
    """
    from puna.train.measure.machine import Machine

    return Machine("cpu", "bench", 1, 8 << 30, {"fp32": 3e10, "bf16": 1e9}, False)


def measure(model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Each ability's answers to the held-out problems.

    Returns greedy results and the share of right samples, by problem.
    """
    from functools import partial

    from puna.engine.generate import load_engine
    from puna.tasks.heldout import heldout_problems
    from puna.tune.measure import answer

    engine = load_engine(model, dtype=torch.float32, fast=True, max_batch=128, kv_tokens=128 * 256)
    found = {}
    for ability, (name, level) in TASKS.items():
        problems = heldout_problems(name, level, args.problems)
        ask = partial(answer, engine, problems, max_tokens=MAX_TOKENS)
        greedy = ask(samples=1)
        drawn = ask(samples=args.samples, temperature=1.0)
        groups = [drawn[at : at + args.samples] for at in range(0, len(drawn), args.samples)]
        found[ability] = {
            "greedy": [one.verdict.passed for one in greedy],
            "right": [sum(one.verdict.passed for one in group) for group in groups],
            "samples": args.samples,
        }
    engine.close()
    short = {name: f"{sum(one['greedy']) / len(one['greedy']):.2f}" for name, one in found.items()}
    print(f"  {model}: greedy {short}", file=sys.stderr, flush=True)
    return found


def pooled(rows: list[dict[str, Any]], ability: str) -> dict[str, Any]:
    """Shares over all seeds with their intervals, and each seed's own share."""
    greedy = [ok for row in rows for ok in row[ability]["greedy"]]
    samples = rows[0][ability]["samples"]
    shares = [right / samples for row in rows for right in row[ability]["right"]]
    anyhow = [float(right > 0) for row in rows for right in row[ability]["right"]]

    def share(values: list[float], interval: tuple[float, float]) -> dict[str, Any]:
        return {"value": round(sum(values) / len(values), 4), "interval": [round(end, 4) for end in interval]}

    return {
        "problems": len(greedy),
        "greedy": share(greedy, wilson(sum(greedy), len(greedy))),
        "pass@1": share(shares, clustered(shares)),
        f"pass@{samples}": share(anyhow, clustered(anyhow)),
        "greedy by seed": [round(sum(row[ability]["greedy"]) / len(row[ability]["greedy"]), 4) for row in rows],
    }


def show(table: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the table."""
    for ability in TASKS:
        print(ability, *TASKS[ability])
        for name, abilities in table.items():
            parts = [
                f"{key} {value['value']:.2f} ({value['interval'][0]:.2f}-{value['interval'][1]:.2f})"
                for key, value in abilities[ability].items()
                if isinstance(value, dict)
            ]
            print(f"  {name:<28}", "  ".join(parts))


if __name__ == "__main__":
    main()
