"""Compare predicted and measured peak memory of training runs on the CPU.

Each run is a fresh process. The shapes differ in what dominates: activations, states, logits, the document mask,
recomputation, accumulation, the copy for a checkpoint. The measurement is the process's peak resident memory after a
few steps: the first creates the optimizer's state, so the second reaches the peak.

    python bench/memory.py [--only NAME ...]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import common

WIDE = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8}
DEEP = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}

CASES: dict[str, dict[str, Any]] = {
    "laptop, compiled": {},
    "laptop, eager": {"train": {"compile": "off"}},
    "wide, compiled": {"model": WIDE},
    "wide, eager": {"model": WIDE, "train": {"compile": "off"}},
    "wide, recompute selected": {"model": WIDE, "train": {"recompute": "selective"}},
    "wide, recompute all": {"model": WIDE, "train": {"recompute": "full"}},
    "wide, recompute all, eager": {"model": WIDE, "train": {"recompute": "full", "compile": "off"}},
    "wide, AdamW, checkpoints": {"model": WIDE, "optimizer": {"kind": "adamw"}, "checkpoint": {"every": 1}},
    "110M, few tokens": {"model": DEEP, "train": {"batch": 2}},
    "110M, four micro-batches": {"model": DEEP, "train": {"batch": 8, "micro_batch": 2}},
    "long rows, document mask": {"train": {"seq_len": 1024, "batch": 4, "document_mask": True, "compile": "off"}},
    "32k vocabulary": {"model": {"vocab_size": 32768}},
    "32k vocabulary, one chunk": {"model": {"vocab_size": 32768}, "train": {"loss_chunk": 0, "batch": 8}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help="run only these cases, save nothing")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--worker", metavar="RECIPE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(json.loads(args.worker))
        return
    corpus = str(common.stdlib_corpus())
    results = {}
    for name, changes in CASES.items():
        if args.only and name not in args.only:
            continue
        results[name] = row = measure(recipe(name, changes, corpus, args.steps))
        error = row["predicted"] / row["measured"] - 1
        row["error"] = round(error, 4)
        predicted, measured = row["predicted"] / 2**20, row["measured"] / 2**20
        print(f"{name:<28} predicted {predicted:7,.0f} MiB  measured {measured:7,.0f} MiB  {error:+.1%}", flush=True)
    if not args.only:
        worst = max(results.values(), key=lambda row: abs(row["error"]))["error"]
        print(f"largest error {worst:+.1%}")
        settings = {"steps": args.steps, "goal": 0.1, "cases": CASES}
        common.save("memory-cpu", settings, {"cases": results, "worst": worst})


def recipe(name: str, changes: dict[str, Any], corpus: str, steps: int) -> dict[str, Any]:
    """The recipe of a case: the laptop's shape, in fp32, with the case's changes."""
    base: dict[str, Any] = {
        "model": {"preset": "mini"},
        "train": {"steps": steps, "precision": "fp32", "compile": "on"},
        "log": {"eval_bytes": 10_000},
    }
    tree = {section: {**base.get(section, {}), **changes.get(section, {})} for section in {*base, *changes}}
    return {"name": name.replace(" ", "-").replace(",", ""), "corpus": corpus, **tree}


def measure(tree: dict[str, Any]) -> dict[str, Any]:
    """Run a recipe in a separate process; predicted and measured bytes, and the predicted parts."""
    command = [sys.executable, __file__, "--worker", json.dumps(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=common.ROOT)
    if done.returncode:
        raise RuntimeError(f"{tree['name']} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def work(tree: dict[str, Any]) -> None:
    """Train, with nothing else in this process that takes memory."""
    from pathlib import Path

    from puna.core.recipe import check
    from puna.train.measure.machine import Machine, peak_process_memory
    from puna.train.planning.memory import predict_memory
    from puna.train.pretrain import train
    from puna.train.recipe import Recipe

    value = check(Recipe, tree, tree["name"])
    machine = Machine("cpu", "", 0, 1 << 50, {"fp32": 1.0, "bf16": 1.0}, True)  # nothing is measured or refused here

    def report(_: object) -> None:
        estimate = predict_memory(value, device_type="cpu")
        print(json.dumps({"predicted": estimate.total, "measured": peak_process_memory(), "parts": estimate.parts}))
        sys.stdout.flush()
        os._exit(0)  # the end of the run (evaluation, model directory) is not measured

    # One more step than needed, because a hook runs before its step.
    longer = value.model_copy(update={"train": value.train.model_copy(update={"steps": value.train.steps + 1})})
    with tempfile.TemporaryDirectory(prefix="puna-memory-") as folder:
        train(longer, Path(folder), machine=machine, hooks={value.train.steps: report})


if __name__ == "__main__":
    main()
