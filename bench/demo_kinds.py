"""Measure `make demo` on each kind of processor.

Results are its time, bits per byte, and three abilities next to their control.

    python bench/demo_kinds.py                          # every kind that this processor can emulate, two seeds
    python bench/demo_kinds.py --kinds avx2 --seeds 0 --minutes 5
    python bench/demo_kinds.py --kinds avx2 --seeds 0 --load 4    # with four busy processes at the same time

A processor with more instructions can be restricted to fewer: ATEN_CPU_CAPABILITY for torch's own kernels,
ONEDNN_MAX_CPU_ISA for its products, MKL_ENABLE_INSTRUCTIONS for MKL's, PUNA_KERNELS (a value for the compiler's -march)
for the engine's. A kind that needs more than this processor has is left out, and the result says so. Each demo is a
separate process in an empty folder, including building the corpus and its tokenizer, so the time is what a user waits
after installation. Rows replace those of the same name in bench/results/demo-kinds.json, so machines of several kinds
can fill one table.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

KINDS: dict[str, tuple[str, dict[str, str]]] = {
    # kind: the /proc/cpuinfo flag it needs, and the settings that restrict a larger processor to it
    "avx2": (
        "avx2",
        {
            "ATEN_CPU_CAPABILITY": "avx2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            "PUNA_KERNELS": "x86-64-v3",
        },
    ),
    "avx512-bf16": ("avx512_bf16", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}),
    "amx": ("amx_bf16", {}),
}
ABILITIES = ("Code", "Reasoning", "Planning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default: 0 1")
    parser.add_argument("--minutes", type=float, default=5.0, help="minutes of training (default 5)")
    parser.add_argument("--load", type=int, default=0, help="busy processes that run at the same time (default 0)")
    parser.add_argument("--keep", type=Path, help="keep the demos' folders here")
    args = parser.parse_args()
    flags = common.cpu_instructions()
    for kind in args.kinds:
        needed, _ = KINDS[kind]
        if needed not in flags:
            print(f"{kind}: left out, this processor has no {needed}", file=sys.stderr)
            continue
        for seed in args.seeds:
            row = one(kind, seed, args)
            print(json.dumps(row, indent=1))
            keep(row, args)


def one(kind: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Run one demo and return its figures."""
    with tempfile.TemporaryDirectory(prefix="puna-demo-") as scratch:
        folder = args.keep / f"{kind}-{seed}-{args.load}" if args.keep else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "puna", "demo", "--no-chat", "--json"]
        command += ["--minutes", str(args.minutes), "--seed", str(seed)]
        workers = [multiprocessing.Process(target=spin, daemon=True) for _ in range(args.load)]
        for worker in workers:
            worker.start()
        begin = time.perf_counter()
        try:
            done = subprocess.run(
                command, cwd=folder, env={**os.environ, **KINDS[kind][1]}, stdout=subprocess.PIPE, text=True, check=True
            )
        finally:
            for worker in workers:
                worker.terminate()
        return figures(json.loads(done.stdout), kind, seed, args.load, args.minutes, time.perf_counter() - begin)


def figures(result: dict[str, Any], kind: str, seed: int, load: int, minutes: float, wall: float) -> dict[str, Any]:
    """The row of a demo's result: the figures that the README claims and the goals are about."""
    rows = {row["name"]: row["value"] for row in result["bits_per_byte"]}
    abilities = {}
    for ability in result["abilities"]:
        stages = {stage["stage"]: stage for stage in ability["stages"]}
        reinforced, control = stages["after RL"], stages["control: more SFT"]
        abilities[ability["ability"]] = {
            **{name: round(stage["greedy"], 3) for name, stage in stages.items()},
            "rl_interval": [round(end, 3) for end in reinforced["greedy_interval"]],
            "control_interval": [round(end, 3) for end in control["greedy_interval"]],
            "apart": reinforced["greedy_interval"][0] > control["greedy_interval"][1],
            "behind": reinforced["greedy_interval"][1] < control["greedy_interval"][0],
        }
    best = result["chosen"][0]
    return {
        "kind": kind,
        "seed": seed,
        "load": load,
        "minutes": minutes,
        "model": f"{best['layers']} x {best['hidden_size']}",
        "tokens": result["tokens"],
        "bits_per_byte": round(rows["this model"], 4),
        "predicted_bits_per_byte": round(best["bits_per_byte"], 4),
        "zstd_primed": round(rows["zstd -19 primed"], 4),
        "seconds": round(wall, 1),
        "promised_seconds": round(result["promised_seconds"], 1),
        "training_seconds": round(result["training_seconds"], 1),
        "training_over_promise": round(result["training_seconds"] / (60 * minutes) - 1, 4),
        "memory_over_prediction": round(result["over_prediction"]["memory"], 4),
        "abilities": abilities,
    }


def keep(row: dict[str, Any], args: argparse.Namespace) -> None:
    """Add the row to the table, replacing an older one of the same kind, seed, load and minutes."""
    path = common.RESULTS / "demo-kinds.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else []
    same = ("kind", "seed", "load", "minutes")
    rows = [old for old in rows if any(old[name] != row[name] for name in same)]
    facts = common.environment(("torch",))
    rows.append({**row, "device": facts["device"], "instructions": facts["instructions"], "date": facts["date"]})
    rows.sort(key=lambda one: tuple(str(one[name]) for name in same))
    common.save("demo-kinds", {"abilities": list(ABILITIES)}, rows)


def spin() -> None:
    """Keep one core busy."""
    while True:
        sum(range(100_000))


if __name__ == "__main__":
    main()
