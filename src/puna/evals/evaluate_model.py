"""Evaluates a model by name, for `puna eval` and `puna.evaluate_model`: choose benchmarks, load the model, run.

Mistakes in the arguments are found before the model is loaded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from puna.core.errors import RecipeError
from puna.data.corpus import Corpus
from puna.engine.generate import Engine, load_engine
from puna.evals.catalogue import select, suites
from puna.evals.contract import Benchmark
from puna.evals.datasets import EvalData
from puna.evals.evaluate import Loaded, evaluate, load_items
from puna.evals.generation import Sampling
from puna.evals.runner import OnProgress
from puna.model.hub import model_directory, model_name
from puna.model.store import load_stage, stored_dtype
from puna.train.measure.machine import best_device

Form = Literal["auto", "chat", "text"]


class Opened(NamedTuple):
    """A model that can be evaluated. chat: whether it is asked in chat turns."""

    engine: Engine
    directory: Path
    chat: bool


def open_model(
    model: str | Path, *, device: str | None = None, max_batch: int = 32, fast: bool = False, form: Form = "auto"
) -> Opened:
    """Load a model or run directory for evaluation. form: as `evaluate_model`. Raises PunaError."""
    directory = model_directory(model)
    options: dict[str, Any] = {"device": device or best_device(), "max_batch": max_batch}
    # The kernels for a CPU, but in the files' own precision: a score is the model's, not a rounded one's.
    options |= {"fast": True, "dtype": stored_dtype(directory)} if fast else {"deterministic": True}
    engine = load_engine(directory, **options)
    return Opened(engine, directory, load_stage(directory) != "base" if form == "auto" else form == "chat")


def evaluate_model(
    model: str | Path,
    benchmarks: str | Sequence[str | Benchmark],
    *,
    out: str | Path | None = None,
    limit: int | None = None,
    data: str | Path | None = None,
    hub: bool = False,
    instruct: bool = True,
    samples: int = 4,
    temperature: float = 0.8,
    seed: int = 0,
    form: Form = "auto",
    fast: bool = False,
    device: str | None = None,
    max_batch: int = 32,
    corpus: str | Path | None = None,
    against: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Run benchmarks on a model and return the content of `results.json`.

    benchmarks: names of suites and benchmarks (in one text, separated by commas, or a list), or Benchmark values. out:
    the folder for results, by default evals/NAME; a run that was stopped goes on there. limit: at most so many items of
    each. data: folder of benchmark files, by default PUNA_EVAL_DATA; hub: fetch what it does not have. instruct: give
    tasks with their instruction. samples, temperature, seed: of the sampled answers. form: ask in
    chat turns or as text; auto: as the model was trained. fast: 5 to 15 times faster on a CPU, without the promise that
    a score does not depend on the batch. corpus: searched for the items. against: a second model, compared item by
    item. on_progress: called with the benchmark, the items done and the items in all.
    Raises PunaError for what does not fit, before anything is computed.
    """
    loaded = _loaded(benchmarks, EvalData.find(_path(data), hub=hub, instruct=instruct), limit)
    searched = Corpus.open(Path(corpus)) if corpus else None
    for name, value, least in (("limit", limit, 1), ("samples", samples, 0), ("max_batch", max_batch, 1)):
        if value is not None and value < least:
            raise RecipeError(f"{name} = {value} is below {least}.", "Give a larger number.")
    opened = open_model(model, device=device, max_batch=max_batch, fast=fast, form=form)
    other = open_model(against, device=device, max_batch=max_batch, fast=fast, form=form) if against else None
    try:
        return evaluate(
            opened.engine,
            opened.directory,
            loaded,
            _path(out) or default_folder(opened.directory),
            chat=opened.chat,
            sampling=Sampling(samples, temperature, seed=seed),
            corpus=searched,
            against=other,
            on_progress=on_progress,
        )
    finally:
        for one in (opened, other):
            if one is not None:
                one.engine.close()


def default_folder(directory: Path) -> Path:
    """The default folder of results: evals/<name of the model>."""
    return Path("evals") / model_name(directory)


def _loaded(benchmarks: str | Sequence[str | Benchmark], data: EvalData, limit: int | None) -> Loaded:
    """The items to run. A benchmark that was named itself must have its files; of a suite the others run."""
    wanted = [benchmarks] if isinstance(benchmarks, str) else list(benchmarks)
    chosen: dict[str, Benchmark] = {}
    for one in wanted:
        chosen |= {one.name: one} if isinstance(one, Benchmark) else {found.name: found for found in select(one)}
    names = [name.strip() for one in wanted if isinstance(one, str) for name in one.split(",")]
    known = suites()
    named = [name for name in names if name in known]
    return load_items(list(chosen.values()), data, limit, named=not named, suites=named)


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)
