"""Runs one evaluation from beginning to end: find the items, run them, sum up, write the folder.

folder/settings.json    what everything was measured with
folder/items.jsonl      every item with the model's answer and its score
folder/results.json     the figures
folder/report.html      the figures as a page, with the wrong answers
folder/.eval_results/, folder/model-index.yaml   the figures for a model card
"""

import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from puna.core.console import progress, say
from puna.core.errors import PunaError
from puna.core.files import sha256_file, write_json
from puna.data.corpus import Corpus
from puna.engine.generate import Engine
from puna.evals.contamination import contamination, seen_items
from puna.evals.contract import Benchmark, Item, MultiTurn
from puna.evals.datasets import EvalData, MissingFiles
from puna.evals.generation import Sampling
from puna.evals.output.compare import compare
from puna.evals.output.model_card import write_cards
from puna.evals.output.report import write_report
from puna.evals.results import summarise
from puna.evals.runner import OnProgress, Row, chosen, run
from puna.model.store import load_lineage, load_stage
from puna.tasks.sandboxed import require
from puna.version import __version__

Loaded = list[tuple[Benchmark, list[Item], int]]
"""Benchmarks, the items to run, and the number of items that each has."""


def load_items(
    benchmarks: Sequence[Benchmark], data: EvalData, limit: int | None, *, named: bool, say: Callable[[str], None] = say
) -> Loaded:
    """Load the items of each benchmark.

    named: the benchmarks were named one by one, so that missing files are an error; of a suite the others run, and a
    note says what is left out. Raises PunaError, before anything is asked, if programs must be run and there is no
    sandbox for them.
    """
    found: Loaded = []
    left_out: list[str] = []
    for benchmark in benchmarks:
        try:
            items = benchmark.load(data)
        except MissingFiles:
            if named or len(benchmarks) == 1:
                raise
            left_out.append(benchmark.name)
            continue
        if benchmark.code or benchmark.sandbox:
            require()
        found.append((benchmark, chosen(benchmark, items, limit), len(items)))
    if left_out and not found:
        raise PunaError(
            f"The files of {', '.join(left_out)} are not here.",
            "Give --data DIR, set PUNA_EVAL_DATA, or fetch with --hub.",
        )
    if left_out:
        say(f"Left out, as their files are not in {data.place}: {', '.join(left_out)}.")
    return found


def askable(loaded: Loaded, *, chat: bool, say: Callable[[str], None] = say) -> Loaded:
    """Leave out what a model cannot be asked, with a note: multi-turn items need chat turns.

    Raises PunaError if nothing is left.
    """
    talks = [] if chat else [one for one, items, _ in loaded if any(isinstance(item.ask, MultiTurn) for item in items)]
    if not talks:
        return loaded
    names = ", ".join(benchmark.name for benchmark in talks)
    left = [entry for entry in loaded if entry[0] not in talks]
    if not left:
        raise PunaError(f"{names}: asked in chat turns only, but this model is asked in text.", "Give --form chat.")
    say(f"Left out, as they are asked in chat turns only and this model in text: {names}. See --form chat.")
    return left


def describe_model(directory: Path, engine: Engine) -> dict[str, Any]:
    """Describe a model: its weights by hash, its size, its lineage."""
    lineage = load_lineage(directory)
    weights = sorted(directory.glob("*.safetensors"))
    return {
        "path": str(directory),
        "weights_sha256": {path.name: sha256_file(path) for path in weights},
        "tokenizer_sha256": engine.tokenizer.hash if engine.tokenizer else None,
        "parameters": engine.model.config.num_parameters(),
        "context": engine.model.config.max_position_embeddings,
        "stage": load_stage(directory),
        "lineage": lineage,
    }


def settings_of(model: dict[str, Any], engine: Engine, *, chat: bool, sampling: Sampling) -> dict[str, Any]:
    """Return everything that an item's result depends on, besides the item."""
    weight = next(engine.model.parameters())
    return {
        "weights_sha256": model["weights_sha256"],
        "tokenizer_sha256": model["tokenizer_sha256"],
        "form": "chat" if chat else "text",
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": weight.device.type,
        "deterministic": engine.deterministic,
        "samples": sampling.samples,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "puna": __version__,
    }


def evaluate(
    engine: Engine,
    directory: Path,
    loaded: Loaded,
    folder: Path,
    *,
    chat: bool,
    sampling: Sampling,
    corpus: Corpus | None = None,
    against: tuple[Engine, Path, bool] | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Run the loaded items, write the folder and return the content of results.json.

    corpus: searched for the items. against: another model's engine, directory and whether it is asked in chat turns;
    its items are written to folder/against. Raises PunaError as `askable` and `runner.run`.
    """
    loaded = askable(loaded, chat=chat and (against is None or against[2]))
    model = describe_model(directory, engine)
    settings = settings_of(model, engine, chat=chat, sampling=sampling)
    plan = [(benchmark, items) for benchmark, items, _ in loaded]
    rows = run(engine, plan, folder, settings=settings, chat=chat, sampling=sampling, on_progress=on_progress)
    results = {
        "format": 1,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "model": model,
        "settings": settings | {"python": platform.python_version()},
        "benchmarks": [
            summarise(benchmark, items, rows[benchmark.name], of=of, temperature=sampling.temperature)
            for benchmark, items, of in loaded
        ],
    }
    if corpus is not None:
        _look_for(corpus, plan, rows, results)
    if against is not None:
        other, place, other_chat = against
        other_model = describe_model(place, other)
        theirs = run(
            other,
            plan,
            folder / "against",
            settings=settings_of(other_model, other, chat=other_chat, sampling=sampling),
            chat=other_chat,
            sampling=sampling,
            on_progress=on_progress,
        )
        results["against"] = {"model": other_model, "benchmarks": compare(rows, theirs)}
    write_json(folder / "results.json", results)
    write_cards(folder, results)
    write_report(folder)
    return results


def _look_for(
    corpus: Corpus, plan: Sequence[tuple[Benchmark, list[Item]]], rows: dict[str, list[Row]], results: dict[str, Any]
) -> None:
    """Add to every result which of its items the corpus contains."""
    with progress(transient=True) as bar:
        task = bar.add_task("looking for the items in the corpus", total=None)
        seen, short = seen_items(corpus, plan, on_progress=lambda count: bar.update(task, completed=count))
    for one in results["benchmarks"]:
        name = one["benchmark"]
        one["contamination"] = contamination(rows[name], seen[name], short[name], corpus=str(corpus.path))
