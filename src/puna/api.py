"""The functions behind `import puna`: load a model and use it, train, tune, evaluate, plan.

They do what the commands do, with Python values instead of options: the same recipes, directories and error messages.
`docs/python.md` shows each of them.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from puna.core.errors import ModelError, RecipeError, nearest
from puna.core.plugins import include as include  # so that one module holds all functions of the API

if TYPE_CHECKING:
    from puna.engine.generate import Completion, Engine, SamplingParams
    from puna.evals.contract import Likelihood
    from puna.plan.run.estimate import RunEstimate
    from puna.text.tokenizer import Tokenizer
    from puna.train.recipe import Recipe
    from puna.tune.recipe import StageBase

Message = Mapping[str, Any]
"""One message of a dialogue: role ("system", "user" or "assistant") and content."""
Event = dict[str, Any]
"""An event of a run, as written to metrics.jsonl; `kind` is its type ("step", "eval", "end", ...)."""


# -- a model ---------------------------------------------------------------------------------------------------------


class Model:
    """A loaded model: text in, text out. Close it after use, or use it in a `with` block.

    engine: full access to the model, with token ids. is_chat: whether it was trained to answer dialogues.
    Sampling options are those of `SamplingParams`: max_tokens=256, temperature=1.0 (0 is greedy), top_p, top_k, seed,
    stop, n, ... All methods raise PunaError for a prompt that does not fit into the context.
    """

    def __init__(self, engine: "Engine", directory: Path, *, is_chat: bool) -> None:
        if engine.tokenizer is None:
            raise ModelError(f"{directory} has no tokenizer.", "Add the model's tokenizer to the directory.")
        self.engine, self.directory, self.is_chat = engine, directory, is_chat
        self.tokenizer: Tokenizer = engine.tokenizer

    @overload
    def generate(self, prompt: str, **sampling: Any) -> "Completion": ...
    @overload
    def generate(self, prompt: Sequence[str], **sampling: Any) -> "list[Completion]": ...
    def generate(self, prompt: str | Sequence[str], **sampling: Any) -> "Completion | list[Completion]":
        """Continue a prompt, or many at once.

        With n > 1 pass a list: it returns n completions for each prompt.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        ids = [self.tokenizer.encode(one, bos=True) for one in prompts]
        done = self.engine.generate(ids, sampling_params(sampling)) if ids else []
        return done[0] if isinstance(prompt, str) else done

    def chat(self, messages: Sequence[Message], **sampling: Any) -> "Completion":
        """Answer a dialogue. Raises ModelError for a base model, which was not trained to answer."""
        [completion] = self.engine.generate([self._dialogue(messages)], sampling_params(sampling))
        return completion

    def stream(self, prompt: str | Sequence[Message], **sampling: Any) -> Iterator[str]:
        """Yield the continuation of a prompt, or the answer to a dialogue, in pieces.

        Closing the iterator stops it.
        """
        ids = self.tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else self._dialogue(prompt)
        pieces = self.engine.stream(ids, sampling_params(sampling))
        return (text for _, text in pieces if text)

    def score(self, context: str, continuations: Sequence[str]) -> "list[Likelihood]":
        """Score how likely each continuation is after the context: (logprob, tokens, greedy).

        Generates nothing. logprob: the sum over the continuation's tokens, in nats. greedy: whether each of them was
        the most likely token. Raises PunaError for an empty continuation.
        """
        from puna.evals.generation import likelihoods

        scored = likelihoods(self.engine, [(context, continuation) for continuation in continuations])
        return [one.likelihood for one in scored]

    def close(self) -> None:
        """Stop the engine and free its memory."""
        self.engine.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _dialogue(self, messages: Sequence[Message]) -> list[int]:
        from puna.text.chat import render

        if not self.is_chat:
            raise ModelError(f"{self.directory} is a base model, which was not trained to chat.", "Use generate.")
        return render([dict(message) for message in messages], self.tokenizer, add_generation_prompt=True).ids


def load_model(
    model: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    deterministic: bool = False,
    **engine: Any,
) -> Model:
    """Load a model or run directory.

    device: "cpu", "cuda", ... (default: the best available). dtype: "float32" or "bfloat16" (default: the faster one on
    the device). quantize: "int8" or "int4", on a CPU. deterministic: a prompt's logits do not depend on other prompts;
    slower. engine: options of `puna.engine.generate.Engine`, such as max_batch and kv_tokens.
    Raises ModelError for a directory that is not a model, OutOfMemoryError for one that is too large.
    """
    import torch

    from puna.engine.core.memory_errors import out_of_memory
    from puna.engine.generate import load_engine
    from puna.model.hub import model_directory
    from puna.model.store import load_stage
    from puna.train.measure.machine import best_device

    directory = model_directory(model)
    if dtype not in (None, "float32", "bfloat16"):
        raise RecipeError(f"dtype = {dtype!r} is not known.", "Use float32 or bfloat16.")
    with out_of_memory(str(directory), "Use a smaller max_batch or kv_tokens, or a smaller model."):
        loaded = load_engine(
            directory,
            device=device or best_device(),
            dtype=getattr(torch, dtype) if dtype else None,
            fast=not deterministic,
            quantize=quantize,
            deterministic=deterministic,
            **engine,
        )
    return Model(loaded, directory, is_chat=load_stage(directory) == "chat")


def sampling_params(options: Mapping[str, Any]) -> "SamplingParams":
    """Build SamplingParams from keyword options.

    Raises RecipeError with the nearest name for unknown options.
    """
    from dataclasses import fields

    from puna.engine.generate import SamplingParams

    known = [field.name for field in fields(SamplingParams)]
    for name in options:
        if name not in known:
            raise RecipeError(f"There is no sampling option '{name}'.", nearest(name, known))
    stop = options.get("stop", ())
    return SamplingParams(**{**options, "stop": (stop,) if isinstance(stop, str) else tuple(stop)})


# -- training --------------------------------------------------------------------------------------------------------


class RunResult(NamedTuple):
    """The result of a run.

    directory: the run directory, with metrics, checkpoints and report. event: the last event, of kind "end", or
    "interrupted" when a signal stopped the run.
    """

    directory: Path
    event: Event

    @property
    def finished(self) -> bool:
        """Whether the run reached its end."""
        return bool(self.event["kind"] == "end")

    @property
    def model(self) -> Path:
        """The model directory that a finished run has written."""
        return self.directory / "model"


def train_model(
    recipe: str | Path | Mapping[str, Any],
    *,
    overrides: Mapping[str, Any] | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> RunResult:
    """Pretrain a model from a recipe, in this process (under torchrun: as one of its processes).

    recipe: a TOML file, or its content as a dictionary; with resume a run directory. overrides: dotted keys and values,
    {"train.steps": 500}. run_dir: runs/<name> by default. on_event: called with every event of metrics.jsonl.
    Raises RecipeError for an invalid recipe, and PunaError for a corpus or machine that does not fit it.
    """
    from puna.train.run.directory import finished_event, new_run, resumed_run, settled

    words = _words(overrides)
    if resume:
        directory = Path(_place(recipe))
        asked = resumed_run(directory, words)
        if finished := finished_event(directory, asked):
            return RunResult(directory, finished)
    else:
        with _as_file(recipe) as path:
            asked, directory = new_run(path, words, _path(run_dir))
    event = _pretrain(settled(asked), directory, resume, [on_event] if on_event else [])
    return RunResult(directory, event)


def _pretrain(recipe: "Recipe", directory: Path, resume: bool, observers: list[Callable[[Event], None]]) -> Event:
    from puna.train.pretrain import train

    return train(recipe, directory, resume=resume, observers=observers)


def tune_model(
    recipe: str | Path | Mapping[str, Any],
    model: str | Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> RunResult:
    """Run one stage after pretraining: the one in the recipe's key `stage` (sft, dpo, rl, ...).

    model: the model to start from, if not the recipe's `model`. The other arguments are those of `train_model`.
    """
    from puna.core.recipe import read_toml
    from puna.tune.stages import finished_stage, new_stage, resumed_stage, settled

    words = _words({**({"model": str(model)} if model is not None else {}), **(overrides or {})})
    if resume:
        directory = Path(_place(recipe))
        asked: StageBase = resumed_stage(directory, words, stage="")
        if finished := finished_stage(directory, asked):
            return RunResult(directory, finished)
    else:
        with _as_file(recipe) as path:
            stage = str(read_toml(path).get("stage", ""))
            asked, directory = new_stage(path, words, _path(run_dir), stage=stage)
    event = _tune(settled(asked), directory, resume, [on_event] if on_event else [])
    return RunResult(directory, event)


def _tune(recipe: "StageBase", directory: Path, resume: bool, observers: list[Callable[[Event], None]]) -> Event:
    from puna.tune.stages import runner

    return runner(str(recipe.stage))(recipe, directory, resume=resume, observers=observers)


# -- planning --------------------------------------------------------------------------------------------------------


def plan_run(
    target: str,
    *,
    fleet: str | None = None,
    tokens: str | None = None,
    batch: str | None = None,
    seq_len: int | None = None,
    precision: str | None = None,
    stack: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> "RunEstimate":
    """Plan a training run: `puna plan` without its output.

    target: a preset, a recipe file or a model directory. fleet: accelerators, such as "8xh100" (default: this
    machine's). tokens, batch: counts with a unit, "15T", "4M". The result has `best` (the chosen layout),
    `step_seconds`, `days`, `energy_mwh`, `rent_usd`, ..., each with the ends of its 80 % interval.
    Raises PunaError for unknown names, and when no layout is legal.
    """
    from puna.plan.run.estimate import estimate_run
    from puna.train.planning.target import Options, find_target, fleet_for, on_this_machine

    group = fleet_for(fleet, limited=False)
    options = Options(tokens, batch, None if seq_len is None else str(seq_len), precision, stack)
    here = fleet is None
    found = find_target(target, _words(overrides), options, accelerator=group.accelerator, machine=here)
    question, notes = found.question(group.accelerator, group.count), list(found.assumptions)
    if here and found.stack == "puna":
        question, note = on_this_machine(found, question)
        notes.append(note)
    layout = found.recipe_layout(group.accelerator, group.count)
    return estimate_run(question, tokens=found.tokens, recipe_layout=layout, assumptions=tuple(notes))


# -- recipes from Python ---------------------------------------------------------------------------------------------


class _as_file:
    """Provide a recipe as a file while it is read; a dictionary is written to a temporary one."""

    def __init__(self, recipe: str | Path | Mapping[str, Any]) -> None:
        self.recipe = recipe
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Path:
        if not isinstance(self.recipe, Mapping):
            return Path(self.recipe)
        import tomli_w

        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "recipe.toml"
        path.write_text(tomli_w.dumps(dict(self.recipe)), encoding="utf-8")
        return path

    def __exit__(self, *_: object) -> None:
        if self.folder is not None:
            self.folder.cleanup()


def _place(recipe: str | Path | Mapping[str, Any]) -> str | Path:
    if isinstance(recipe, Mapping):
        raise RecipeError("resume needs a run directory, not a recipe.", "Pass the run directory.")
    return recipe


def _words(overrides: Mapping[str, Any] | None) -> list[str]:
    """Overrides as on the command line: key=value, the value in TOML."""
    import tomli_w

    return [f"{key}={tomli_w.dumps({'x': value})[len('x = ') :].strip()}" for key, value in (overrides or {}).items()]


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)
