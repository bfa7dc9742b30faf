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
from puna.evals.datasets import EvalData, MissingFiles, first_file
from puna.evals.generation import Sampling
from puna.evals.origins import origin
from puna.evals.output.compare import compare
from puna.evals.output.model_card import write_cards
from puna.evals.output.report import write_report
from puna.evals.results import summarise
from puna.evals.runner import OnProgress, Row, chosen, run
from puna.model.store import load_lineage, load_stage
from puna.tasks.sandboxed import require
from puna.version import __version__

SHOWN = 3
"""How many files and benchmarks an error names."""
Loaded = list[tuple[Benchmark, list[Item], int]]
"""Benchmarks, the items to run, and the number of items that each has."""


def load_items(
    benchmarks: Sequence[Benchmark],
    data: EvalData,
    limit: int | None,
    *,
    named: bool,
    suites: Sequence[str] = (),
    say: Callable[[str], None] = say,
) -> Loaded:
    """Load the items of each benchmark.

    named: the benchmarks were named one by one, so that missing files are an error; of a suite the others run, and a
    note says what is left out. suites: those that were named; one of which only Puna's own tasks could run is refused.
    Raises PunaError, before anything is asked, also if programs must be run and there is no sandbox for them.
    """
    missing = set() if named else {one.name for one in benchmarks if not _reachable(one, data)}
    _refuse(suites, benchmarks, missing, data)  # before the items of Puna's tasks are made
    found: Loaded = []
    for benchmark in benchmarks:
        if benchmark.name in missing:
            continue
        try:
            items = benchmark.load(data)
        except MissingFiles:
            if named or len(benchmarks) == 1:
                raise
            missing.add(benchmark.name)
            continue
        if benchmark.code or benchmark.sandbox:
            require()
        found.append((benchmark, chosen(benchmark, items, limit), len(items)))
    _refuse(suites, benchmarks, missing, data)
    left_out = [one for one in benchmarks if one.name in missing]
    names = ", ".join(one.name for one in left_out)
    if left_out and not found:
        raise _nothing_of(names, left_out, data)
    if left_out:
        say(f"Left out, as their files are not here ({data.described}): {names}. See puna eval list.")
    return found


def _reachable(benchmark: Benchmark, data: EvalData) -> bool:
    """Whether the first file of a benchmark is here, can be fetched as was asked, or is not needed."""
    file = None if _own(benchmark) else first_file(benchmark.load, data)
    return file is None or file.here or (file.hub and data.hub)


def _refuse(suites: Sequence[str], benchmarks: Sequence[Benchmark], missing: set[str], data: EvalData) -> None:
    """Raise MissingFiles for a suite of which only Puna's own tasks would be left."""
    for suite in suites:
        public = [one for one in benchmarks if suite in (*one.suites, "all") and not _own(one)]
        if public and all(one.name in missing for one in public):
            raise _nothing_of(suite, public, data)


def _own(benchmark: Benchmark) -> bool:
    """Whether a benchmark is one of Puna's tasks, which need no files."""
    return "puna" in benchmark.suites


def _nothing_of(what: str, benchmarks: Sequence[Benchmark], data: EvalData) -> MissingFiles:
    """The error for a suite whose public benchmarks are all missing: which files, where from, and what to do."""
    wanted = {one.name: first_file(one.load, data) for one in benchmarks}
    files = dict.fromkeys(file.name for file in wanted.values() if file is not None)
    lines = [f"{name}, from {found.source} ({found.form})" for name in files if (found := origin(name)) is not None]
    more = f"; and {len(files) - SHOWN} more (puna eval list)" if len(files) > SHOWN else ""
    fetched = [name for name, file in wanted.items() if file is not None and file.hub and not data.hub]
    hub = f"--hub fetches {', '.join(fetched[:SHOWN])}{' and others' if fetched[SHOWN:] else ''}. " if fetched else ""
    return MissingFiles(
        f"Nothing of {what} is here: {data.described}.",
        f"{hub}Or put into a folder, and name it with --data or PUNA_EVAL_DATA: {'; '.join(lines[:SHOWN])}{more}. "
        "Puna's own tasks need no files: --suite puna.",
    )


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
