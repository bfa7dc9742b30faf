"""Speed of the planner: layouts per second, the largest search, time to a first answer.

    python bench/plan_speed.py [--calculon FOLDER]

With the folder of a checkout of Calculon (github.com/calculon-ai/calculon) its evaluations are timed in turns with
Puna's, in the same run on the same machine. NumPy's element-wise work runs on one core. Results:
bench/results/plan-speed.json.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common
from puna.core.console import show_table
from puna.model.config import ModelConfig
from puna.plan.equations.constants import load_constants
from puna.plan.equations.hardware import find_accelerator
from puna.plan.equations.shape import from_config
from puna.plan.layouts.predict import Question
from puna.plan.layouts.search import search

ROUNDS = 7
# The second has more layouts than most, because its fleet has many divisors.
SEARCHES = {"405B on 16,384": (16384, 2048), "405B on 20,160": (20160, 20160)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calculon", type=Path, help="a checkout of Calculon, to be timed in the same run")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return _calculon(args.calculon)
    load_constants()
    results: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {name: [] for name in SEARCHES}
    counts: dict[str, int] = {}
    peer = None
    if args.calculon:
        python = common.peer_environment("calculon", ["pandas", "psutil", "python-dateutil", "pytz", "tzdata", "six"])
        peer = common.Contender("Calculon", [str(python), __file__, "--worker", "--calculon", str(args.calculon)])
    peer_rates: list[float] = []
    for _ in range(ROUNDS):
        for name, (accelerators, batch) in SEARCHES.items():
            shape = from_config(ModelConfig(preset="llama3.1-405b"))
            question = Question(name, shape, find_accelerator("h100"), accelerators, 8192, batch)
            started = time.perf_counter()
            counts[name] = len(search(question.workload()))
            seconds[name].append(time.perf_counter() - started)
        if peer:
            peer_rates.append(peer.ask(evaluations=100)["rate"])
    for name, times in seconds.items():
        rates = [counts[name] / value for value in times]
        results[name] = {
            "layouts": counts[name],
            "seconds": common.spread(times),
            "layouts_per_second": common.spread(rates),
        }
    results["start_to_answer_seconds"] = common.spread([_answer() for _ in range(5)])
    if peer_rates:
        best = max(results[name]["layouts_per_second"]["median"] for name in SEARCHES)
        results["calculon"] = {
            "evaluations_per_second": common.spread(peer_rates),
            "ratio": best / common.spread(peer_rates)["median"],
        }
    show_table(["", "value"], [[name, str(value)] for name, value in results.items()])
    common.save("plan-speed", {"rounds": ROUNDS, "cores_used": 1}, results, packages=("numpy",))


def _answer() -> float:
    """Seconds of `puna plan llama3-8b --fleet 8xh100`, from the start of the process to its end."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "puna", "plan", "llama3-8b", "--fleet", "8xh100", "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def _calculon(folder: Path) -> None:
    """Calculon's side, in a separate environment.

    Times evaluations of its own example, with a smaller layout.
    """
    sys.path.insert(0, str(folder))
    import logging

    import calculon  # type: ignore[import-not-found]
    from calculon.llm import Llm  # type: ignore[import-not-found]
    from calculon.system import System  # type: ignore[import-not-found]

    run = calculon.io.read_json_file(str(folder / "examples" / "3072_t4_p64_d12_mbs4_full.json"))
    run |= {"num_procs": 512, "tensor_par": 8, "pipeline_par": 8, "data_par": 8, "batch_size": 512}
    run |= {"microbatch_size": 1}
    system = System(calculon.io.read_json_file(str(folder / "systems" / "a100_80g.json")))
    application = Llm.Application(calculon.io.read_json_file(str(folder / "models" / "gpt3-175B.json")))

    def rate(request: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        for _ in range(request["evaluations"]):
            one = Llm(application, logging.getLogger("calculon"))
            one.compile(system, Llm.Execution.from_json(run))
            one.run(system)
        return {"rate": request["evaluations"] / (time.perf_counter() - started)}

    common.serve({"ready": True}, rate)


if __name__ == "__main__":
    main()
