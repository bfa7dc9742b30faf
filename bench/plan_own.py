"""Compare predicted and measured time of Puna's own training steps on this CPU.

Each recipe runs in a fresh process. The recipes are the demo's and others around it: narrower, wider and deeper models,
longer and shorter rows, micro-batches, other precisions, recomputation, optimizers. Predictions are based on a few
seconds of measuring operations (`train.measure.machine`), made before, between and after the steps; the measured value
is the median step after compilation. Steps and measurements in which other processes took more than a twentieth of the
CPUs are discarded, and repeated as long as the case's time lasts.

    python bench/plan_own.py [--only NAME ...] [--seconds 120]
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

NARROW = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 3}
BROADER = {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 6, "num_attention_heads": 5}
WIDE = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
DEEP = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 12, "num_attention_heads": 6}
GROUPED = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 6}

CASES: dict[str, dict[str, Any]] = {
    "demo": {},
    "eager": {"train": {"compile": "off"}},
    "narrow": {"model": NARROW, "train": {"batch": 2}},
    "broader": {"model": BROADER},
    "wide": {"model": WIDE, "train": {"batch": 4}},
    "deep, AdamW": {
        "model": {**DEEP, "num_key_value_heads": 3},
        "train": {"seq_len": 256, "batch": 4},
        "optimizer": {"kind": "adamw"},
    },
    "grouped queries": {"model": {**GROUPED, "num_key_value_heads": 2}, "train": {"seq_len": 256}},
    "long rows": {"train": {"seq_len": 1024, "batch": 4}},
    "short rows": {"train": {"seq_len": 128, "batch": 32}},
    "four micro-batches": {"train": {"batch": 16, "micro_batch": 4}},
    "16k vocabulary": {"model": {"vocab_size": 16384}},
    "fp32": {"train": {"precision": "fp32"}},
    "recompute all": {"train": {"recompute": "full"}},
    "recompute selected": {"train": {"recompute": "selective"}},
}
# The cases to which `plan.own` fitted its few constants: passes over memory of compiled and of eager blocks, Muon's
# bytes. The others show how good it is.
FITTED = ("demo", "eager")
BUSY = 0.05  # share of the CPUs that other processes may use
MEASUREMENTS, STEPS = 3, 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help="run only these cases, save nothing")
    parser.add_argument("--seconds", type=float, default=120, help="limit for one case, excluding compilation")
    parser.add_argument("--worker", metavar="RECIPE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(json.loads(args.worker), args.seconds)))
        return
    corpus = str(common.stdlib_corpus())
    results = {}
    for name, changes in CASES.items():
        if args.only and name not in args.only:
            continue
        row = measure(recipe(name, changes, corpus), args.seconds)
        results[name] = row = {"fitted": name in FITTED, **row}
        if row["error"] is None:
            print(f"{name:<20} the machine was too busy", flush=True)
        else:
            print(
                f"{name:<20} predicted {row['predicted_seconds']:6.3f} s  measured {row['measured_seconds']:6.3f} s  "
                f"{row['error']:+.1%}",
                flush=True,
            )
    if not args.only:
        told = {name: row["error"] for name, row in results.items() if row["error"] is not None and not row["fitted"]}
        errors = [abs(error) for error in told.values()]
        summary = {"median": statistics.median(errors), "worst": max(errors), "cases": len(errors)}
        print(f"held out: median {summary['median']:.1%}, worst {summary['worst']:.1%}")
        settings = {"goal": 0.1, "cases": CASES, "seconds": args.seconds, "busy": BUSY}
        common.save("plan-own-cpu", settings, {"cases": results, "held_out": summary})


def recipe(name: str, changes: dict[str, Any], corpus: str) -> dict[str, Any]:
    """The recipe of a case: the demo's on two cores, with the case's changes."""
    base: dict[str, Any] = {
        "model": {
            "vocab_size": 4096,
            "hidden_size": 256,
            "intermediate_size": 688,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 1024,
        },
        "train": {"steps": 1_000_000, "seq_len": 512, "batch": 8, "grad_clip": 0.0},
    }
    tree = {section: {**base.get(section, {}), **changes.get(section, {})} for section in {*base, *changes}}
    tree["model"].setdefault("num_key_value_heads", tree["model"]["num_attention_heads"])
    return {"name": name.replace(" ", "-").replace(",", ""), "corpus": corpus, **tree}


def measure(tree: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Run a recipe in a separate process."""
    command = [sys.executable, __file__, "--seconds", str(seconds), "--worker", json.dumps(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=common.ROOT)
    if done.returncode:
        raise RuntimeError(f"{tree['name']} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def work(tree: dict[str, Any], limit: float) -> dict[str, Any]:
    """Measure operations and steps in turns.

    Return the prediction, the measurement, and the parts.
    """
    import torch

    from puna.core.recipe import check
    from puna.train.measure.machine import measure as rates
    from puna.train.parallel import World
    from puna.train.planning.step_time import expected_step
    from puna.train.pretrain import prepare
    from puna.train.recipe import Recipe

    world = World(0, 1, torch.device("cpu"))
    with tempfile.TemporaryDirectory(prefix="puna-own-") as folder:
        loop = prepare(check(Recipe, tree, tree["name"]), Path(folder), world)
        numbers = itertools.count()

        def step() -> float:
            batch = loop.objective.batch(next(numbers))
            started = time.perf_counter()
            loop.train_step(batch)[0].item()
            return time.perf_counter() - started

        for _ in range(3):
            step()
        expected, steps, wasted = [], [], 0
        started = time.perf_counter()
        while len(expected) < MEASUREMENTS or len(steps) < STEPS:
            if time.perf_counter() - started > limit:
                break
            if len(expected) <= len(steps) * MEASUREMENTS / STEPS:
                machine, quiet = alone(lambda: rates("cpu"))
                found = expected_step(loop.state.training, machine)
                if quiet and found is not None:
                    expected.append(found)
            else:
                seconds, quiet = alone(step)
                if quiet:
                    steps.append(seconds)
            wasted += not quiet
            if not quiet:
                time.sleep(1)
        loop.objective.close()
    if len(expected) < 2 or len(steps) < 5:
        return {"error": None, "steps": len(steps), "wasted": wasted}
    predicted = statistics.median(one.step_seconds for one in expected)
    measured = statistics.median(steps)
    middle = min(expected, key=lambda one: abs(one.step_seconds - predicted))
    return {
        "predicted_seconds": round(predicted, 4),
        "measured_seconds": round(measured, 4),
        "error": round(predicted / measured - 1, 4),
        "predictions": [round(one.step_seconds, 4) for one in expected],
        "steps": common.spread(steps),
        "parts": {name: round(value, 4) for name, value in middle.seconds.items() if value},
        "wasted": wasted,
    }


def alone(run: Callable[[], Any]) -> tuple[Any, bool]:
    """Return the result of `run`, and whether this process had the CPUs nearly to itself.

    Uses Linux's /proc/stat.
    """
    busy, own, started = _busy_seconds(), time.process_time(), time.perf_counter()
    result = run()
    elapsed = time.perf_counter() - started
    others = (_busy_seconds() - busy) - (time.process_time() - own)
    # The kernel counts in hundredths of a second.
    return result, others <= BUSY * elapsed * _cpus() + 0.02


def _busy_seconds() -> float:
    user, nice, system, _idle, _wait, *interrupts = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    return sum(map(int, (user, nice, system, *interrupts))) / 100


def _cpus() -> int:
    return sum(line[:3] == "cpu" for line in Path("/proc/stat").read_text().splitlines()) - 1


if __name__ == "__main__":
    main()
