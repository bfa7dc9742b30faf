"""The demo: from this machine's own files to a model that answers, in one command.

    measure the machine -> plan -> build a corpus -> train -> measure the model -> tune -> report -> prompt

The corpus is the standard library of the running Python: real code and prose that every machine has. The size of the
model and the number of tokens follow from the measured speed and the time allowed; what was expected is said before
and held against what came out. Every row of the comparison is shown, whoever wins it.
"""

import itertools
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.core.console import say
from puna.core.errors import PunaError
from puna.core.files import new_directory, write_json
from puna.core.recipe import check
from puna.core.units import format_bytes, format_count, format_seconds
from puna.data.build import build_corpus
from puna.data.corpus import Corpus
from puna.data.recipe import DataRecipe
from puna.demo.tuning import tune_demo
from puna.engine.generate import Engine
from puna.evals.completions import completions, function_heads
from puna.train.recipe import Recipe
from puna.train.speed import bigram_flops, expected_step

if TYPE_CHECKING:
    from puna.train.loop import Loop
    from puna.train.machine import Machine

CORPUS_RECIPE = {
    "name": "stdlib",
    "sources": [{"name": "stdlib", "kind": "python-stdlib", "licence": "PSF-2.0", "exclude": ["pydoc_data/*"]}],
    "filters": {"code": True},
    "heldout": {"share": 0.06},
    "tokenizer": {"vocab_size": 4096},
}


@dataclass(frozen=True)
class Size:
    """A model for budgets of at least `flops` training FLOPs."""

    flops: float
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    batch: int


# Smaller models see more tokens in the same time. Only the 256 wide one was measured (docs/log.md, 2026-11-23); the
# others carry its proportions to slower and faster machines.
SIZES = (
    Size(0, 64, 2, 2, 176, 2),
    Size(3e11, 128, 3, 4, 344, 2),
    Size(3e12, 256, 4, 4, 688, 8),
    Size(6e13, 320, 6, 5, 864, 8),
    Size(5e14, 512, 8, 8, 1376, 32),
    Size(1e16, 768, 12, 12, 2048, 64),
)
SEQ_LEN = 512
NEW_TOKENS = 96  # of a sampled function body, at most
TUNE_MINUTES = 4.0


def plan(machine: "Machine", minutes: float, *, corpus: str, name: str) -> Recipe:
    """The recipe that fits `minutes` of training on `machine`: model, tokens and batch from its measured speed."""
    precision = machine.fast_precision
    budget = minutes * 60 * machine.matmul_flops[precision]
    size = [size for size in SIZES if budget >= size.flops][-1]
    first = _recipe(size, steps=1, corpus=corpus, name=name)
    step = expected_step(first, machine)
    assert step is not None
    return _with_steps(first, max(16, int(minutes * 60 / step.step_seconds)))


def _with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with that many steps, and checkpoints, evaluations and samples spread over them."""
    train = recipe.train.model_copy(update={"steps": steps})
    log = recipe.log.model_copy(update={"eval_every": max(20, steps // 8), "sample_every": max(20, steps // 6)})
    checkpoint = recipe.checkpoint.model_copy(update={"every": max(20, steps // 4)})
    return recipe.model_copy(update={"train": train, "log": log, "checkpoint": checkpoint})


def _recipe(size: Size, *, steps: int, corpus: str, name: str) -> Recipe:
    return check(
        Recipe,
        {
            "name": name,
            "corpus": corpus,
            "model": {
                "vocab_size": CORPUS_RECIPE["tokenizer"]["vocab_size"],  # type: ignore[index]
                "hidden_size": size.hidden_size,
                "intermediate_size": size.intermediate_size,
                "num_hidden_layers": size.layers,
                "num_attention_heads": size.heads,
                "num_key_value_heads": size.heads,
                "max_position_embeddings": 1024,
            },
            "train": {"steps": steps, "seq_len": SEQ_LEN, "batch": size.batch, "init": "induction", "grad_clip": 0.0},
            "optimizer": {
                "matrix_lr": 0.02,
                "embedding_lr": 0.005,
                "head_lr": 0.001,
                "lr": 0.001,
                "betas": (0.8, 0.95),
            },
            "schedule": {"kind": "wsd", "warmup": 0.02, "decay": 0.65},
            "log": {"every": 10, "eval_bytes": 60_000},
        },
        "the demo's recipe",
    )


def run_demo(
    *,
    minutes: float,
    folder: Path = Path(),
    observers: Sequence[Callable[[dict[str, Any]], None]] = (),
    bodies: int = 96,
    tune_minutes: float | None = None,
) -> dict[str, Any]:
    """Go the whole way; returns what was measured and where everything lies.

    minutes: of training. folder: `corpora/`, `runs/` and `models/` are made in it. bodies: function bodies sampled for
    each of the three measurements of code. tune_minutes: of tuning, measuring included; None: four fifths of
    `minutes`, at most 4; 0: none.
    Raises PunaError when the machine is too small or the run was interrupted (it can be resumed).
    """
    from puna.evals.compressors import compressors
    from puna.train.machine import measure
    from puna.train.pretrain import train
    from puna.train.report import write_report

    if minutes <= 0:
        raise PunaError(f"minutes = {minutes:g} is not a time to train for.", "Give a number above 0, for example 5.")
    begin = time.perf_counter()
    _heading(1, "This machine")
    machine = measure()
    _say_machine(machine)

    _heading(2, "A corpus: the standard library of this Python")
    corpus_dir = folder / "corpora" / "demo"
    corpus = _corpus(corpus_dir)

    _heading(3, "A plan for the time allowed")
    run_dir = _free_run(folder / "runs")
    recipe = _timed(plan(machine, minutes, corpus=str(corpus_dir), name=run_dir.name), minutes, machine)
    _say_plan(recipe, minutes)

    _heading(4, "Training")
    code = CodeMeasure(corpus, bodies)
    total = recipe.total_steps
    hooks = {0: code.at("at initialisation"), total // 2: code.at("half-way"), total: code.at("at the end")}
    event = train(recipe, run_dir, observers=observers, hooks=hooks, machine=machine)
    if event["kind"] != "end":
        raise PunaError(event["detail"][0].upper() + event["detail"][1:] + ".")

    _heading(5, "Beside compressors, on the same held-out files")
    rows = [
        {
            "name": "this model",
            "value": event["bits_per_byte"],
            "interval": event["interval"],
            "note": _window_note(recipe),
        },
        {
            "name": "its first weights",
            "value": code.first_bits_per_byte,
            "note": "counted from the corpus, no step made",
        },
        *compressors(corpus),
    ]
    evaluation = {"bits_per_byte": rows, "completions": code.results, "samples": code.samples}
    write_json(run_dir / "evaluation.json", evaluation)
    report = write_report(run_dir)
    model_dir = _publish(run_dir / "model", folder / "models" / "demo")
    abilities: list[dict[str, Any]] = []
    tune_minutes = min(TUNE_MINUTES, 0.8 * minutes) if tune_minutes is None else tune_minutes
    if tune_minutes > 0:
        _heading(6, f"Tuning, about {format_seconds(tune_minutes * 60)}: code, reasoning, planning")
        base = _publish(run_dir / "model", folder / "models" / "demo-base")
        tune_dir = run_dir / "tune"
        pace = 1 + (event["over_prediction"]["step_seconds"] or 0.0)  # what was measured first may have been disturbed
        abilities = tune_demo(
            base, tune_dir, seconds=tune_minutes * 60, machine=machine, pace=pace, observers=observers
        )
        write_json(run_dir / "evaluation.json", {**evaluation, "abilities": abilities})
        report = write_report(run_dir)
        model_dir = _publish(tune_dir / "model", model_dir)
    return {
        "bits_per_byte": rows,
        "completions": code.results,
        "tokens": event["tokens"],
        "tokens_per_second": event["tokens_per_second"],
        "training_seconds": event["seconds"],
        "abilities": abilities,
        "seconds": time.perf_counter() - begin,
        "run": str(run_dir),
        "model": str(model_dir),
        "report": str(report),
    }


class CodeMeasure:
    """Code ability over the run: bodies sampled for the same held-out function heads, and how many of them parse."""

    def __init__(self, corpus: Corpus, bodies: int) -> None:
        self.corpus = corpus
        self.heads = function_heads(corpus, limit=bodies)
        self.results: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self.first_bits_per_byte: float | None = None

    def at(self, label: str) -> Callable[["Loop"], None]:
        """A hook for the loop that measures the weights of that moment."""
        from puna.train.pretrain import Pretraining

        def measure(loop: "Loop") -> None:
            state, objective = loop.state, loop.objective
            engine = Engine(state.model, self.corpus.tokenizer, decode_buckets=False)
            with state.uncompiled():
                found = completions(engine, self.heads, max_tokens=NEW_TOKENS, context_tokens=SEQ_LEN - NEW_TOKENS)
            if state.step == 0 and isinstance(objective, Pretraining):
                self.first_bits_per_byte = objective.bits_per_byte()["bits_per_byte"]
            samples = found.pop("samples")
            self.results.append({"step": state.step, "label": label, **found})
            for sample in samples[:2]:
                self.samples.append({"step": state.step, "prompt": sample["prompt"][-160:], "text": sample["text"]})
            say(f"function bodies that parse, {label}: {found['parsed']} of {found['sampled']}")

        return measure


def _timed(recipe: Recipe, minutes: float, machine: "Machine") -> Recipe:
    """The recipe with as many steps as the time allows, after measuring a few."""
    from puna.train.pretrain import step_seconds

    with tempfile.TemporaryDirectory(prefix="puna-") as scratch:
        seconds = step_seconds(recipe, Path(scratch), machine=machine, seconds=min(10.0, minutes * 12))
    start = bigram_flops(recipe.model) / (0.7 * machine.matmul_flops["fp32"])
    steps = int((minutes * 60 - start) / seconds)
    if steps < 8:
        raise PunaError(
            f"One step takes {format_seconds(seconds)} here and the first weights {format_seconds(start)}: too slow to "
            f"train in {minutes:g} minutes.",
            f"Allow at least minutes={math.ceil((start + 16 * seconds) / 6) / 10:g}.",
        )
    return _with_steps(recipe, steps)


def _corpus(directory: Path) -> Corpus:
    """The demo's corpus: the one that lies there when it was made by this Python, else a new one."""
    if (directory / "manifest.json").is_file():
        corpus = Corpus.open(directory)
        say(f"{directory} is there already ({format_count(corpus.num_tokens())} tokens); remove it to build it anew.")
        return corpus
    build_corpus(check(DataRecipe, CORPUS_RECIPE, "the demo's corpus"), directory)
    return Corpus.open(directory)


def _free_run(runs: Path) -> Path:
    """runs/demo, or the first of demo-2, demo-3, ... that is free: nothing of an earlier demo is lost."""
    names = itertools.chain(("demo",), (f"demo-{i}" for i in itertools.count(2)))
    return next(runs / name for name in names if not (runs / name).exists())


def _publish(trained: Path, model: Path) -> Path:
    """Put a copy of the trained model where the next command expects it; an earlier demo's model is replaced."""
    with new_directory(model, replace=True) as place:
        shutil.copytree(trained, place, dirs_exist_ok=True)
    return model


def _heading(number: int, text: str) -> None:
    say(f"\n[bold]{number}  {text}[/bold]")


def _say_machine(machine: "Machine") -> None:
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in machine.matmul_flops.items())
    compiler = "torch.compile has a compiler" if machine.has_compiler else "no compiler: blocks run eagerly"
    say(f"{machine.name}, {machine.cores} cores, {format_bytes(machine.memory_bytes)} free; {compiler}")
    say(f"matrix products: {rates}")


def _say_plan(recipe: Recipe, minutes: float) -> None:
    model, tokens = recipe.model, recipe.total_steps * recipe.tokens_per_step
    size, step = format_count(model.num_parameters()), f"{recipe.tokens_per_step:,} tokens"
    say(f"{model.num_hidden_layers} layers, {model.hidden_size} wide: {size} parameters")
    say(f"{recipe.total_steps:,} steps of {step}, {format_count(tokens)} in all, in {format_seconds(minutes * 60)}")


def _window_note(recipe: Recipe) -> str:
    size = format_count(recipe.model.num_parameters())
    return f"{size} parameters, window {recipe.train.seq_len} tokens, stride half of it"
