"""Evaluations per second of the sandbox on one core, compared with a bare interpreter.

python bench/sandbox_rate.py [--rounds 5] [--each 40]

The contenders take turns, round after round, so that a busy machine slows all alike. All are restricted to one core,
which other programs may use too; the load average is stored with the figures.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import common
from puna.sandbox.worker import Sandbox

SOURCE = "def f(x): return sorted(x)"
INPUTS = [[[3, 1, 2]], [[9, 8]], [[]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--each", type=int, default=40, help="evaluations of a contender per round")
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sandboxes = {level: Sandbox(level) for level in ("limits", "confined", "isolated")}
    contenders: dict[str, Callable[[], object]] = {
        f"sandbox at '{sandbox.level}'": lambda sandbox=sandbox: _evaluate(sandbox) for sandbox in sandboxes.values()
    }
    contenders["python -I -S, no walls"] = lambda: subprocess.run(
        [os.path.realpath(sys.executable), "-I", "-S", "-c", SOURCE + f"\nprint([f(*x) for x in {INPUTS}])"],
        check=True,
        capture_output=True,
    )
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, one in contenders.items():
            began = time.perf_counter()
            for _ in range(args.each):
                one()
            rates[name].append(args.each / (time.perf_counter() - began))
    for sandbox in sandboxes.values():
        sandbox.close()
    results = {
        "evaluations_per_second": {name: common.spread(values) for name, values in rates.items()},
        "load_average": round(os.getloadavg()[0], 1),
    }
    settings = {"rounds": args.rounds, "each": args.each, "goal": 30, "inputs": len(INPUTS), "cores": 1}
    common.save("sandbox-rate", settings, results, packages=())
    for name, values in rates.items():
        print(f"{name:28s} {statistics.median(values):6.1f} a second")


def _evaluate(sandbox: Sandbox) -> None:
    result = sandbox.run(SOURCE, function="f", inputs=INPUTS)
    if not result.ok:
        raise RuntimeError(result.reason)


if __name__ == "__main__":
    main()
