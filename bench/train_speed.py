"""Training tokens per second of Puna, transformers and litgpt on this CPU, in turns.

All train the same Llama (256 wide, 6 layers, 8 query heads on 4 key-value heads, feed-forward 688, vocabulary 4,096)
on rows of 256 tokens, 16 per step, with AdamW (fused) on fp32 weights: forward, loss, backward, update. Puna's step is
that of its trainer, including gradient clipping and the guard, which the peers do not have. transformers runs as its
users run it (eager, fp32) and in its best setting; litgpt is compiled as a whole, as in its pretraining. If the CPU has
no fast bf16, those settings are left out for all.

    python bench/train_speed.py [--rounds 7] [--steps 6]
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
}
SEQ, ROWS = 256, 16
LITGPT = ("litgpt", "lightning", "lightning-utilities", "torchmetrics", "jsonargparse>=4.37,<=4.41", "typeshed-client")

# name -> (precision, compiled); "mixed" is bf16 autocast over fp32 weights, "bf16" is bf16 throughout.
CONTENDERS = {
    "puna fp32": ("fp32", True),
    "puna mixed": ("mixed", True),
    "transformers eager fp32": ("fp32", False),
    "transformers eager mixed": ("mixed", False),
    "transformers compiled fp32": ("fp32", True),
    "transformers compiled mixed": ("mixed", True),
    "litgpt compiled fp32": ("fp32", True),
    "litgpt compiled mixed": ("mixed", True),
    "litgpt compiled bf16": ("bf16", True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=6, help="training steps per turn")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker)
        return

    from puna.train.measure.machine import measure

    machine = measure("cpu")
    contenders, skipped = start(fast_bf16=machine.fast_precision == "bf16")
    speeds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for turn in range(args.rounds):
        for contender in contenders:
            seconds = contender.ask(steps=args.steps)["seconds"]
            speeds[contender.name].append(args.steps * ROWS * SEQ / seconds)
        print(f"round {turn + 1}: " + ", ".join(f"{n} {s[-1]:,.0f}" for n, s in speeds.items()), file=sys.stderr)
    for contender in contenders:
        contender.close()

    results = {
        "tokens_per_second": {name: common.spread(values) for name, values in speeds.items()},
        "ratios": ratios(speeds),
        "losses_after_warm_up": {contender.name: contender.ready["loss"] for contender in contenders},
        "skipped": skipped,
        "matmul_gflops": {name: round(rate / 1e9, 1) for name, rate in machine.matmul_flops.items()},
        "versions": {contender.name: contender.ready["version"] for contender in contenders},
    }
    settings = {**SHAPE, "seq_len": SEQ, "rows": ROWS, "rounds": args.rounds, "steps_per_turn": args.steps}
    common.save("train-speed-cpu", settings, results, packages=("torch", "transformers"))
    for name, value in results["ratios"].items():
        print(f"{name}: {value['median']:.2f} ({value['min']:.2f} to {value['max']:.2f})")


def start(*, fast_bf16: bool) -> tuple[list[common.Contender], dict[str, str]]:
    """Start every contender that can run here, one after the other.

    Returns the others with the reason.
    """
    contenders, skipped = [], {}
    litgpt: Path | None = None
    try:
        litgpt = common.peer_environment("litgpt", LITGPT)
    except subprocess.CalledProcessError as error:
        skipped["litgpt"] = f"could not be installed: {error}"
    for name, (precision, _) in CONTENDERS.items():
        if precision != "fp32" and not fast_bf16:
            skipped[name] = "this CPU has no fast bf16"
            continue
        python = litgpt if name.startswith("litgpt") else Path(sys.executable)
        if python is None:
            continue
        try:
            contenders.append(common.Contender(name, [str(python), __file__, "--worker", name]))
        except RuntimeError as error:
            skipped[name] = str(error)
    return contenders, skipped


def ratios(speeds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Puna's best setting over each peer's setting and over each peer's best, round by round."""
    best = {
        peer: max((n for n in speeds if n.startswith(peer)), key=lambda n: statistics.median(speeds[n]), default=None)
        for peer in ("puna", "transformers", "litgpt")
    }
    pairs = {f"{best['puna']} / {name}": name for name in speeds if not name.startswith("puna")}
    for peer in ("transformers", "litgpt"):
        if best[peer]:
            pairs[f"{best['puna']} / {peer}'s best ({best[peer]})"] = best[peer]
    return {
        label: common.spread([own / other for own, other in zip(speeds[best["puna"]], speeds[name], strict=True)])
        for label, name in pairs.items()
    }


# -- workers ---------------------------------------------------------------------------------------------------------


def work(name: str) -> None:
    """Build one contender, warm it up, and train on request."""
    import torch

    from puna.train.measure.machine import cores

    torch.set_num_threads(cores())
    torch.manual_seed(0)
    peer = name.split()[0]
    precision, compiled = CONTENDERS[name]
    step, version = {"puna": puna, "transformers": transformers, "litgpt": litgpt}[peer](precision, compiled)
    generator = torch.Generator().manual_seed(0)
    # Ids are distributed like words, so that losses are like those of text and all contenders learn the same thing.
    weights = 1.0 / torch.arange(1, SHAPE["vocab_size"] + 1)
    rows = torch.multinomial(weights.expand(64, -1), SEQ + 1, replacement=True, generator=generator)

    def train(steps: int, at: int = 0) -> float:
        loss = torch.zeros(())
        for i in range(at, at + steps):
            pick = rows[torch.arange(i * ROWS, (i + 1) * ROWS) % len(rows)]
            loss = step(pick[:, :-1].contiguous(), pick[:, 1:].contiguous())
        return float(loss)

    loss = train(8)  # compiles, and creates the optimizer's state

    def answer(request: dict[str, Any]) -> dict[str, float]:
        started = time.perf_counter()
        last = train(request["steps"])
        return {"seconds": time.perf_counter() - started, "loss": last}

    common.serve({"loss": loss, "version": version}, answer)


Step = Callable[[Any, Any], Any]


def puna(precision: str, compiled: bool) -> tuple[Step, str]:
    """The trainer's own step: chunked loss, clipping, guard, optimizer."""
    import tempfile

    import torch

    from puna.core.recipe import check
    from puna.train.feed import LocalRows
    from puna.train.measure.machine import Machine
    from puna.train.parallel import World
    from puna.train.pretrain import Pretraining, prepare
    from puna.train.recipe import Recipe
    from puna.version import __version__

    tree = {
        "name": "speed",
        "corpus": str(common.stdlib_corpus()),
        "model": SHAPE,
        "train": {
            "steps": 1000,
            "seq_len": SEQ,
            "batch": ROWS,
            "precision": precision,
            "compile": "on" if compiled else "off",
        },
        "optimizer": {"kind": "adamw", "lr": 1e-3, "weight_decay": 0.1},
        "schedule": {"kind": "cosine"},
    }
    machine = Machine("cpu", "", 0, 1 << 50, {"fp32": 1.0, "bf16": 1.0}, True)  # nothing is planned with it here
    run_dir = Path(tempfile.mkdtemp(prefix="puna-speed-"))
    loop = prepare(check(Recipe, tree, "speed"), run_dir, World(0, 1, torch.device("cpu")), machine=machine)
    objective = loop.objective
    assert isinstance(objective, Pretraining)
    return lambda ids, targets: loop.train_step(objective.parts(LocalRows(ids, targets, None)))[0], __version__


def transformers(precision: str, compiled: bool) -> tuple[Step, str]:
    """LlamaForCausalLM with its own loss, as in its documentation's training loop."""
    import torch
    import transformers

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, attn_implementation="sdpa"))
    forward = torch.compile(model) if compiled else model

    def loss(ids: Any, targets: Any) -> Any:
        # It shifts labels itself; passing the inputs as labels costs the same as any others.
        return forward(input_ids=ids, labels=ids).loss

    return _plain_step(model, loss, precision), transformers.__version__


def litgpt(precision: str, compiled: bool) -> tuple[Step, str]:
    """litgpt's GPT configured as the same Llama, compiled as a whole.

    It uses litgpt's own chunked cross entropy.
    """
    import importlib.metadata

    import torch
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        block_size=SHAPE["max_position_embeddings"],
        vocab_size=SHAPE["vocab_size"],
        padded_vocab_size=SHAPE["vocab_size"],
        n_layer=SHAPE["num_hidden_layers"],
        n_head=SHAPE["num_attention_heads"],
        n_query_groups=SHAPE["num_key_value_heads"],
        n_embd=SHAPE["hidden_size"],
        intermediate_size=SHAPE["intermediate_size"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    model = GPT(config)
    forward = torch.compile(model) if compiled else model
    if precision == "bf16":
        model.to(torch.bfloat16)

    def loss(ids: Any, targets: Any) -> Any:
        return chunked_cross_entropy(forward(ids), targets)

    return _plain_step(model, loss, precision), importlib.metadata.version("litgpt")


def _plain_step(model: Any, loss: Callable[[Any, Any], Any], precision: str) -> Step:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)

    def step(ids: Any, targets: Any) -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "mixed"):
            value = loss(ids, targets)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


if __name__ == "__main__":
    main()
