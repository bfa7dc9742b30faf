"""The demo: from this machine's own files to a model that answers, in one command.

    measure the machine -> build a corpus -> choose a model -> train -> measure the model -> tune -> report -> page

The corpus is the standard library of the running Python: real code and prose that every machine has. The model and
the number of steps follow from step times measured here and the time allowed (`demo.shapes`). Expectations are printed
first and compared with the results; every row of a comparison is shown, whichever wins. An interrupted demo continues
where it stopped (`demo.progress`), and each part keeps its time: training by changing the number of its steps, tuning
by using what is left.
"""

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.core.console import say
from puna.core.errors import PunaError
from puna.core.files import new_directory, write_json
from puna.core.load import busy, other_load
from puna.core.recipe import check
from puna.core.units import format_bytes, format_count, format_seconds
from puna.data.build import build_corpus
from puna.data.corpus import Corpus
from puna.data.recipe import DataRecipe
from puna.demo.introduction import introduce
from puna.demo.progress import DemoProgress, find
from puna.demo.shapes import SEQ_LEN, Candidate, Option, choose, most_steps
from puna.demo.tuning import MAX_TOKENS, tune_demo
from puna.engine.generate import Engine
from puna.evals.completions import completions, function_heads
from puna.train.planning.step_time import bigram_flops, expected_step
from puna.train.recipe import Recipe

if TYPE_CHECKING:
    from puna.train.loop import Loop
    from puna.train.measure.machine import Machine

CORPUS_RECIPE = {
    "name": "stdlib",
    "sources": [{"name": "stdlib", "kind": "python-stdlib", "licence": "PSF-2.0", "exclude": ["pydoc_data/*"]}],
    "filters": {"code": True},
    "heldout": {"share": 0.06},
    "tokenizer": {"vocab_size": 4096},
}
VOCAB_SIZE = 4096
NEW_TOKENS = 96  # maximum tokens of a sampled function body
TUNE_MINUTES = 6.0
OTHER_SECONDS = 180.0
"""Seconds of all other parts: corpus, step times, sampled bodies, compressors (two cores with AVX2, 2026-11-30)."""
MOST_TUNING, LEAST_TUNING = 1.1, 0.5
"""Bounds on the time for tuning, which gets what the parts before it have left of the demo's time."""


def run_demo(
    *,
    minutes: float,
    folder: Path = Path(),
    observers: Sequence[Callable[[dict[str, Any]], None]] = (),
    bodies: int = 96,
    tune_minutes: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Run the demo; returns the measurements and the paths of its results.

    minutes: of training. folder: receives `corpora/`, `runs/` and `models/`; an unfinished demo with the same settings
    in it is continued. bodies: function bodies sampled for each of the three measurements of code. tune_minutes: of
    tuning, including measurements; None: 1.2 times `minutes`, at most 6; 0: none. seed: of the data order, the
    demonstrations and the samples. Raises PunaError when the machine is too small, or the run was interrupted (the same
    call continues it).
    """
    if minutes <= 0:
        raise PunaError(f"minutes = {minutes:g} is not a training time.", "Use a number above 0, for example 5.")
    tune_minutes = min(TUNE_MINUTES, 1.2 * minutes) if tune_minutes is None else tune_minutes
    settings = {"minutes": minutes, "tune_minutes": tune_minutes, "bodies": bodies, "seed": seed}
    progress, begun = find(folder / "runs", settings)
    return Demo(folder, progress, observers).run(begun)


class Demo:
    """One demo: runs the parts in order.

    Each records its result and is skipped if a result is recorded.
    """

    def __init__(
        self, folder: Path, progress: DemoProgress, observers: Sequence[Callable[[dict[str, Any]], None]]
    ) -> None:
        self.folder, self.progress, self.observers = folder, progress, observers
        self.run_dir = progress.run_dir
        self.minutes: float = progress.settings["minutes"]
        self.tune_seconds: float = 60 * progress.settings["tune_minutes"]
        self.promised = 60 * self.minutes + self.tune_seconds + OTHER_SECONDS
        self._machine: Machine | None = None

    @property
    def machine(self) -> "Machine":
        """This machine, measured on first use."""
        from puna.train.measure.machine import measure

        self._machine = self._machine or measure()
        return self._machine

    def run(self, begun: bool) -> dict[str, Any]:
        """Run all parts and return their results."""
        if begun:
            done = ", ".join(name for name in self.progress.done) or "nothing yet"
            say(f"Continuing the demo in {self.run_dir} (finished: {done}).")
        self._print_promise()
        _heading(1, "This machine")
        _print_machine(self.machine)
        _heading(2, "A corpus: the standard library of this Python")
        corpus_dir = self.folder / "corpora" / "demo"
        corpus = _corpus(corpus_dir)
        _heading(3, "A model for the time allowed")
        recipe = self._recipe(corpus, corpus_dir)
        _heading(4, "Training")
        event = self._train(recipe, corpus)
        _heading(5, "Next to compressors, on the same held-out files")
        evaluation = self._compare(recipe, corpus, event)
        report, model = self._publish(self.run_dir / "model", "demo")
        abilities: list[dict[str, Any]] = []
        if self.tune_seconds:
            abilities = self._tune(event)
            write_json(self.run_dir / "evaluation.json", {**evaluation, "abilities": abilities})
            report, model = self._publish(self.run_dir / "tune" / "model", "demo")
            introduce(model, self.run_dir / "model", abilities, max_tokens=MAX_TOKENS)
        self.progress.keep("end", {"seconds": self.progress.seconds, "promised": self.promised})
        return {
            "bits_per_byte": evaluation["bits_per_byte"],
            "completions": evaluation["completions"],
            "tokens": event["tokens"],
            "tokens_per_second": event["tokens_per_second"],
            "training_seconds": event["seconds"],
            "over_prediction": event["over_prediction"],
            "chosen": self.progress.done["recipe"]["options"],
            "abilities": abilities,
            "seconds": self.progress.seconds,
            "promised_seconds": self.promised,
            "run": str(self.run_dir),
            "model": str(model),
            "report": str(report),
        }

    # -- parts -------------------------------------------------------------------------------------------------------

    def _recipe(self, corpus: Corpus, corpus_dir: Path) -> Recipe:
        """The recipe that promises the fewest bits per byte, from step times measured here."""
        done = self.progress.done
        if "recipe" not in done:
            options = self._options(corpus, corpus_dir)
            best, seconds = options[0], 60 * self.minutes
            if best.steps == most_steps(best.rows, corpus.num_tokens()):  # limited by passes, not by time
                seconds = 0.0
            recipe = self._draft(best.shape, best.rows, corpus_dir, steps=best.steps, seconds=seconds)
            shown = [_plain(option) for option in options]
            self.progress.keep("recipe", {"recipe": recipe.model_dump(mode="json"), "options": shown})
        recipe = check(Recipe, done["recipe"]["recipe"], "the demo's recipe")
        _print_plan(recipe, done["recipe"]["options"], self.minutes)
        return recipe

    def _options(self, corpus: Corpus, corpus_dir: Path) -> list[Option]:
        machine, seconds = self.machine, 60 * self.minutes

        def starting(shape: Candidate) -> float:
            return bigram_flops(self._draft(shape, 8, corpus_dir).model) / (0.7 * machine.matmul_flops["fp32"])

        def estimate(shape: Candidate, rows: int) -> float:
            step = expected_step(self._draft(shape, rows, corpus_dir), machine)
            assert step is not None
            return step.step_seconds

        def measure(shape: Candidate, rows: int) -> float:
            from puna.train.pretrain import step_seconds

            with tempfile.TemporaryDirectory(prefix="puna-") as scratch:
                took = min(6.0, 0.1 * seconds)
                step = step_seconds(self._draft(shape, rows, corpus_dir), Path(scratch), machine=machine, seconds=took)
            say(f"{shape.layers} layers, {shape.hidden_size} wide: {step:.3g} s a step ({rows} x {SEQ_LEN} tokens)")
            return step

        options = choose(
            seconds, corpus_tokens=corpus.num_tokens(), starting=starting, estimate=estimate, measure=measure
        )
        best = options[0]
        if best.steps < 8:
            first = starting(best.shape)
            raise PunaError(
                f"One step takes {format_seconds(best.step_seconds)} here and the first weights "
                f"{format_seconds(first)}: too slow to train in {self.minutes:g} minutes.",
                f"Allow at least minutes={math.ceil((first + 16 * best.step_seconds) / 6) / 10:g}.",
            )
        return options

    def _draft(self, shape: Candidate, rows: int, corpus_dir: Path, *, steps: int = 1, seconds: float = 0.0) -> Recipe:
        seed = self.progress.settings["seed"]
        name = self.run_dir.name
        return demo_recipe(shape, rows, corpus=str(corpus_dir), name=name, steps=steps, seconds=seconds, seed=seed)

    def _train(self, recipe: Recipe, corpus: Corpus) -> dict[str, Any]:
        """Train and return the run's last event."""
        from puna.train.pretrain import train

        done = self.progress.done
        if "training" not in done:
            code = CodeMeasure(corpus, self.progress)
            event = train(
                recipe,
                self.run_dir,
                resume=(self.run_dir / "metrics.jsonl").exists(),  # also before the first checkpoint: from step 0
                observers=self.observers,
                hooks={
                    0.0: code.at("at initialisation"),
                    0.5: code.at("half-way"),
                    1.0: code.at("at the end"),
                },
                machine=self.machine,
            )
            _end(event)
            self.progress.keep("training", event)
        event = done["training"]
        if promised := recipe.schedule.seconds:
            took, over = event["seconds"], f"{event['seconds'] / promised - 1:+.0%}".replace("-", "−")
            say(f"Training took {format_seconds(took)} of the promised {format_seconds(promised)} ({over}).")
        return dict(event)

    def _compare(self, recipe: Recipe, corpus: Corpus, event: dict[str, Any]) -> dict[str, Any]:
        """Compare bits per byte with compressors, and count code that parses, for the report."""
        from puna.evals.compressors import compressors

        done = self.progress.done
        if "compressors" not in done:
            self.progress.keep("compressors", compressors(corpus))
        model = {"name": "this model", "value": event["bits_per_byte"], "interval": event["interval"]}
        first = {"name": "its first weights", "value": done["code"]["first_bits_per_byte"]}
        rows = [
            {**model, "note": _window_note(recipe)},
            {**first, "note": "counted from the corpus, no training step"},
            *done["compressors"],
        ]
        code = done["code"]
        evaluation = {"bits_per_byte": rows, "completions": code["results"], "samples": code["samples"]}
        write_json(self.run_dir / "evaluation.json", evaluation)
        return evaluation

    def _tune(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """Tune three abilities in the remaining time and measure them at four stages."""
        done = self.progress.done
        if "abilities" not in done:
            if "tuning" not in done:
                left = self.promised - self.progress.seconds
                seconds = min(MOST_TUNING * self.tune_seconds, max(LEAST_TUNING * self.tune_seconds, left))
                self.progress.keep("tuning", {"seconds": seconds})
            seconds = done["tuning"]["seconds"]
            _heading(6, f"Tuning, about {format_seconds(seconds)}: code, reasoning, planning")
            _, base = self._publish(self.run_dir / "model", "demo-base")
            abilities = tune_demo(
                base,
                self.run_dir / "tune",
                seconds=seconds,
                machine=self.machine,
                pace=1 + (event["over_prediction"]["step_seconds"] or 0.0),
                seed=self.progress.settings["seed"],
                observers=self.observers,
            )
            self.progress.keep("abilities", abilities)
        return list(done["abilities"])

    def _publish(self, trained: Path, name: str) -> tuple[Path, Path]:
        """Draw the report again, and copy the model to its public path, replacing an earlier demo's."""
        from puna.train.report.page import write_report

        model = self.folder / "models" / name
        with new_directory(model, replace=True) as place:
            shutil.copytree(trained, place, dirs_exist_ok=True)
        return write_report(self.run_dir), model

    def _print_promise(self) -> None:
        left = max(0.0, self.promised - self.progress.seconds)
        done = datetime.now().astimezone() + timedelta(seconds=left)
        say(f"About {format_seconds(left)} in all, until {done:%H:%M}.")


class CodeMeasure:
    """Code ability over the run: how many sampled bodies of held-out functions parse.

    The function heads are the same each time.
    """

    def __init__(self, corpus: Corpus, progress: DemoProgress) -> None:
        self.corpus, self.progress = corpus, progress
        self.heads = function_heads(corpus, limit=progress.settings["bodies"])
        self.found: dict[str, Any] = progress.done.get(
            "code", {"results": [], "samples": [], "first_bits_per_byte": None}
        )

    def at(self, label: str) -> Callable[["Loop"], None]:
        """Return a hook for the loop that measures the current weights once."""
        from puna.train.pretrain import Pretraining

        def measure(loop: "Loop") -> None:
            state, objective = loop.state, loop.objective
            if any(result["label"] == label for result in self.found["results"]):
                return
            engine = Engine(state.model, self.corpus.tokenizer, decode_buckets=False)
            with state.uncompiled():
                counted = completions(engine, self.heads, max_tokens=NEW_TOKENS, context_tokens=SEQ_LEN - NEW_TOKENS)
            if state.step == 0 and isinstance(objective, Pretraining):
                self.found["first_bits_per_byte"] = objective.bits_per_byte()["bits_per_byte"]
            samples = counted.pop("samples")
            self.found["results"].append({"step": state.step, "label": label, **counted})
            self.found["samples"] += [
                {"step": state.step, "prompt": sample["prompt"][-160:], "text": sample["text"]}
                for sample in samples[:2]
            ]
            self.progress.keep("code", self.found)
            say(f"function bodies that parse, {label}: {counted['parsed']} of {counted['sampled']}")

        return measure


def demo_recipe(
    shape: Candidate, rows: int, *, corpus: str, name: str, steps: int = 1, seconds: float = 0.0, seed: int = 0
) -> Recipe:
    """The demo's recipe for a shape. seconds: the promised training time; 0: none."""
    return check(
        Recipe,
        {
            "name": name,
            "corpus": corpus,
            "model": {
                "vocab_size": VOCAB_SIZE,
                "hidden_size": shape.hidden_size,
                "intermediate_size": shape.intermediate_size,
                "num_hidden_layers": shape.layers,
                "num_attention_heads": shape.heads,
                "num_key_value_heads": shape.heads,
                "max_position_embeddings": 1024,
            },
            "train": {
                "steps": steps,
                "seq_len": SEQ_LEN,
                "batch": rows,
                "init": "induction",
                "grad_clip": 0.0,
                "seed": seed,
            },
            "optimizer": {
                "matrix_lr": 0.02,
                "embedding_lr": 0.005,
                "head_lr": 0.001,
                "lr": 0.001,
                "betas": (0.8, 0.95),
            },
            "schedule": {"kind": "wsd", "warmup": 0.02, "decay": 0.65, "seconds": seconds},
            "log": {
                "every": max(1, min(10, steps // 12)),
                "eval_bytes": 60_000,
                "eval_every": max(20, steps // 8),
                "sample_every": max(20, steps // 6),
            },
            "checkpoint": {"every": max(20, steps // 4)},
        },
        "the demo's recipe",
    )


def _end(event: dict[str, Any]) -> None:
    """Raise PunaError when a run did not finish."""
    if event["kind"] != "end":
        detail = event["detail"].partition(";")[0]
        raise PunaError(f"{detail[0].upper()}{detail[1:]}.", "The same command continues from there.")


def _corpus(directory: Path) -> Corpus:
    """The demo's corpus: the existing one, or a new one."""
    if (directory / "manifest.json").is_file():
        corpus = Corpus.open(directory)
        say(f"{directory} already exists ({format_count(corpus.num_tokens())} tokens); remove it to build it again.")
        return corpus
    build_corpus(check(DataRecipe, CORPUS_RECIPE, "the demo's corpus"), directory)
    return Corpus.open(directory)


def _plain(option: Option) -> dict[str, Any]:
    return {
        "hidden_size": option.shape.hidden_size,
        "layers": option.shape.layers,
        "rows": option.rows,
        "step_seconds": option.step_seconds,
        "steps": option.steps,
        "bits_per_byte": option.bits_per_byte,
    }


def _heading(number: int, text: str) -> None:
    say(f"\n[bold]{number}  {text}[/bold]")


def _print_machine(machine: "Machine") -> None:
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in machine.matmul_flops.items())
    compiler = "torch.compile has a compiler" if machine.has_compiler else "no compiler: blocks run eagerly"
    say(f"{machine.name}, {machine.cores} cores, {format_bytes(machine.memory_bytes)} free; {compiler}")
    say(f"matrix products: {rates}")
    warning = busy(other_load(), machine.cores) if machine.device == "cpu" else ""
    if warning:
        say(f"[yellow]{warning}[/yellow]")


def _print_plan(recipe: Recipe, options: Sequence[dict[str, Any]], minutes: float) -> None:
    model, tokens, best = recipe.model, recipe.total_steps * recipe.tokens_per_step, options[0]
    size, step = format_count(model.num_parameters()), f"{recipe.tokens_per_step:,} tokens"
    say(f"{model.num_hidden_layers} layers, {model.hidden_size} wide: {size} parameters")
    say(f"{recipe.total_steps:,} steps of {step}, {format_count(tokens)} in all, in {format_seconds(minutes * 60)}")
    others = ", ".join(f"{one['bits_per_byte']:.2f} with {one['layers']} x {one['hidden_size']}" for one in options[1:])
    say(f"expected: {best['bits_per_byte']:.2f} bits per byte" + (f" ({others})" if others else ""))


def _window_note(recipe: Recipe) -> str:
    size = format_count(recipe.model.num_parameters())
    return f"{size} parameters, window {recipe.train.seq_len} tokens, stride half of it"
