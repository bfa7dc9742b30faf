"""What Puna, the same Llama with AdamW, and nanochat learn in a few CPU minutes, in turns.

All train on the same corpus (this Python's standard library) for the same number of seconds, in separate processes that
take turns of a quarter of a minute; schedules follow the share of the time that is spent. Puna's clock includes
counting its initial weights. Compilation (the first step) is not counted for any of them. Held-out bits per byte are
measured the same way for all: every token of every held-out file once, windows of the training length, half a window of
stride.

    python bench/learning.py [--seconds 270] [--nanochat PATH]     # PATH: a checkout of karpathy/nanochat

nanochat is set up by its own model file (`setup_optimizer`, 6 layers, 256 wide) with its own warm-down schedule.
"""

import argparse
import itertools
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

SEQ = 512
TURN = 15.0  # seconds
PROGRESS_BYTES = 60_000  # held-out text measured after every turn, off the clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=270, help="training time of each contender")
    parser.add_argument("--nanochat", type=Path, help="checkout of karpathy/nanochat")
    parser.add_argument("--worker", choices=("puna", "adamw", "nanochat"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return

    corpus = common.stdlib_corpus()
    names = ["puna", "adamw", *(["nanochat"] if args.nanochat else [])]
    extra = ["--seconds", str(args.seconds), *(["--nanochat", str(args.nanochat)] if args.nanochat else [])]
    command = [sys.executable, __file__, "--worker"]
    contenders = {name: common.Contender(name, [*command, name, *extra]) for name in names}
    courses: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(math.ceil(args.seconds / TURN)):
        for name, contender in contenders.items():
            courses[name].append(contender.ask(do="train", seconds=TURN))
            print(f"turn {turn + 1}, {name}: {courses[name][-1]}", file=sys.stderr)
    results: dict[str, Any] = {}
    for name, contender in contenders.items():
        final = contender.ask(do="finish")
        results[name] = {**contender.ready, **final, "course": courses[name]}
        contender.close()
    target = results["adamw"]["course"][-1]
    reached = next((p for p in results["puna"]["course"] if p["bits_per_byte"] <= target["bits_per_byte"]), None)
    results["tokens to AdamW's last value"] = {
        "bits_per_byte": target["bits_per_byte"],
        "adamw": target["tokens"],
        "puna": reached and reached["tokens"],
        "ratio": reached and round(reached["tokens"] / target["tokens"], 3),
    }
    settings = {"seconds": args.seconds, "turn": TURN, "seq_len": SEQ, "corpus_hash": _hash(corpus)}
    if args.nanochat:
        settings["nanochat"] = _commit(args.nanochat)
    common.save("learning-cpu", settings, results)


def work(args: argparse.Namespace) -> None:
    """One contender: create it, run one step (which compiles), then train and measure."""
    import torch

    from puna.data.corpus import Corpus

    corpus = Corpus.open(common.stdlib_corpus())
    make = {"puna": _puna, "adamw": _adamw, "nanochat": _nanochat}[args.worker]
    step, measure, facts, spent = make(corpus, args)
    clock = {"spent": spent, "tokens": 0, "steps": 0}

    def train(seconds: float) -> None:
        until = min(clock["spent"] + seconds, args.seconds)
        while clock["spent"] < until:
            start = time.perf_counter()
            clock["tokens"] += step(int(clock["steps"]), clock["spent"] / args.seconds)
            clock["spent"] += time.perf_counter() - start
            clock["steps"] += 1

    clock["tokens"] += step(0, 0.0)
    clock["steps"] = 1

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "train":
            train(request["seconds"])
        with torch.no_grad():
            value = measure(PROGRESS_BYTES if request["do"] == "train" else None)
        return {"seconds": round(clock["spent"], 1), "tokens": int(clock["tokens"]), "bits_per_byte": round(value, 4)}

    common.serve(facts, answer)


Made = tuple[Callable[[int, float], int], Callable[[int | None], float], dict[str, Any], float]


def _llama(corpus: Any, args: argparse.Namespace, changes: list[str]) -> Made:
    """Puna's trainer with the demo's recipe for this machine, with changes."""
    import tempfile

    import torch

    from puna.core.recipe import check
    from puna.demo.run import demo_recipe
    from puna.demo.shapes import SHAPES
    from puna.train import parallel
    from puna.train.measure.machine import measure as measure_machine
    from puna.train.planning.step_time import expected_step
    from puna.train.pretrain import Pretraining, prepare
    from puna.train.recipe import Recipe
    from puna.train.schedule import lr_factor

    machine = measure_machine()
    draft = demo_recipe(SHAPES[1], 8, corpus=str(corpus.path), name="learning")
    step = expected_step(draft, machine)
    assert step is not None
    steps = max(1, int(args.seconds / step.step_seconds))
    recipe = demo_recipe(SHAPES[1], 8, corpus=str(corpus.path), name="learning", steps=steps).model_dump(mode="json")
    for change in changes:
        key, value = change.split("=")
        section, field = key.split(".")
        recipe[section][field] = value if not value.replace(".", "").isdigit() else float(value)
    recipe = check(Recipe, recipe, "the benchmark's recipe")
    world = parallel.World(0, 1, torch.device("cpu"))
    loop = prepare(recipe, Path(tempfile.mkdtemp()), world, machine=machine)
    objective, numbers = loop.objective, itertools.count()
    assert isinstance(objective, Pretraining)
    share = {"now": 0.0}
    loop.state.lr_factor = lambda: lr_factor(recipe.schedule, share["now"])  # type: ignore[method-assign]

    def step(_number: int, now: float) -> int:
        share["now"] = now
        loop.train_step(objective.batch(next(numbers)))[0].item()
        return recipe.tokens_per_step

    def measure(max_bytes: int | None) -> float:
        return float(objective.bits_per_byte(max_bytes)["bits_per_byte"])

    facts = {"parameters": recipe.model.num_parameters(), "tokens_per_step": recipe.tokens_per_step}
    return step, measure, facts, loop.state.clock.seconds["setup"]


def _puna(corpus: Any, args: argparse.Namespace) -> Made:
    return _llama(corpus, args, [])


def _adamw(corpus: Any, args: argparse.Namespace) -> Made:
    """The same network, data and time; normal initial weights, AdamW at 3e-3, cosine to a tenth."""
    changes = [
        "train.init=normal",
        "train.batch=8",
        "train.grad_clip=1.0",
        "optimizer.kind=adamw",
        "optimizer.lr=0.003",
    ]
    changes += ["optimizer.embedding_lr=0", "optimizer.head_lr=0", "optimizer.weight_decay=0.1"]
    return _llama(corpus, args, [*changes, "schedule.kind=cosine", "schedule.warmup=0.05", "schedule.final=0.1"])


def _nanochat(corpus: Any, args: argparse.Namespace) -> Made:
    import numpy as np
    import torch
    import torch.nn.functional as F

    sys.path.insert(0, str(args.nanochat.resolve()))
    from nanochat.gpt import GPT, GPTConfig

    from puna.data.loader import batch
    from puna.train.measure.evaluate import documents_to_measure, windows

    rows = 8
    config = GPTConfig(sequence_len=SEQ, vocab_size=4096, n_layer=6, n_head=4, n_kv_head=4, n_embd=256)
    with torch.device("meta"):
        plain = GPT(config)
    plain.to_empty(device="cpu")
    plain.init_weights()
    optimizer = plain.setup_optimizer()
    model = torch.compile(plain, dynamic=False)

    def step(number: int, now: float) -> int:
        found = batch(corpus, seed=0, step=number, rows=rows, seq_len=SEQ)
        factor = min(1.0, (1 - now) / 0.65)  # its warm-down ratio
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        loss = model(torch.from_numpy(found.input_ids), torch.from_numpy(found.targets))
        loss.backward()
        optimizer.step()
        plain.zero_grad(set_to_none=True)
        loss.item()
        return rows * SEQ

    def measure(max_bytes: int | None) -> float:
        documents = documents_to_measure(corpus, "heldout", max_bytes)
        bits = 0.0
        plan = [(d, *w) for d in documents for w in windows(len(d.ids), SEQ, SEQ // 2)]
        for at in range(0, len(plan), rows):
            inputs = np.zeros((rows, SEQ), dtype=np.int64)
            targets = np.full((rows, SEQ), -1, dtype=np.int64)
            for row, (document, start, stop, first) in enumerate(plan[at : at + rows]):
                inputs[row, : stop - start] = document.ids[start:stop]
                targets[row, first - start : stop - start] = document.ids[first + 1 : stop + 1]
            logits = plain(torch.from_numpy(inputs)).float()
            loss = F.cross_entropy(
                logits.flatten(0, 1), torch.from_numpy(targets).flatten(), ignore_index=-1, reduction="sum"
            )
            bits += loss.item() / math.log(2)
        return bits / sum(document.num_bytes for document in documents)

    facts = {"parameters": sum(p.numel() for p in plain.parameters()), "tokens_per_step": rows * SEQ}
    return step, measure, facts, 0.0


def _hash(path: Path) -> str:
    from puna.data.corpus import Corpus

    return Corpus.open(path).content_hash[:12]


def _commit(path: Path) -> str:
    done = subprocess.run(["git", "-C", str(path), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()[:12] or "unknown commit"


if __name__ == "__main__":
    main()
