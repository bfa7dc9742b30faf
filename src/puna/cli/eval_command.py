"""evaluate a model

puna eval MODEL --suite code,planning [--limit N]   benchmarks with intervals and baselines, a report and a model card
puna eval MODEL --lm-eval arc_easy,hellaswag        tasks of lm-evaluation-harness on Puna's engine
puna eval bpb MODEL CORPUS                          bits per byte of the corpus' held-out documents
puna eval list                                      every benchmark: whether its files are here, or where from
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.core.errors import PunaError

if TYPE_CHECKING:
    from puna.evals.contract import Benchmark

MAX_WINDOW = 4096
"""Default window of models that do not say how long their training rows were."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "what", nargs="+", metavar="MODEL", help="model or run directory; or: bpb MODEL CORPUS; or: list"
    )
    parser.add_argument("--device", help="cpu, cuda or mps (default: the best available)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    suite = parser.add_argument_group("benchmarks")
    suite.add_argument(
        "--suite", metavar="NAMES", help="suites or benchmarks, separated by commas (see puna eval list)"
    )
    suite.add_argument("--limit", type=int, metavar="N", help="at most N items of each benchmark, always the same ones")
    suite.add_argument("--data", type=Path, metavar="DIR", help="folder of benchmark files (default: $PUNA_EVAL_DATA)")
    suite.add_argument("--hub", action="store_true", help="download files that DIR lacks from the Hugging Face Hub")
    suite.add_argument("--bare", action="store_true", help="leave out the instruction of tasks")
    suite.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for results (default: evals/NAME); an interrupted run continues there",
    )
    suite.add_argument("--against", metavar="OTHER", help="compare with a second model, item by item")
    suite.add_argument(
        "--corpus", type=Path, metavar="DIR", help="corpus to search for benchmark items (contamination)"
    )
    suite.add_argument(
        "--samples",
        type=int,
        default=4,
        metavar="K",
        help="sampled answers per item, besides the greedy one (default: 4)",
    )
    suite.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="temperature of sampled answers (default: 0.8)"
    )
    suite.add_argument("--seed", type=int, default=0, metavar="N", help="seed of sampled answers (default: 0)")
    suite.add_argument(
        "--form",
        choices=("auto", "chat", "text"),
        default="auto",
        help="prompt in chat turns or as plain text (default: as the model was trained)",
    )
    suite.add_argument(
        "--max-batch",
        type=int,
        default=32,
        metavar="N",
        help="sequences computed at once; does not change scores (default: 32)",
    )
    suite.add_argument(
        "--fast", action="store_true", help="5 to 15 times faster on a CPU; near ties may be decided differently"
    )
    suite.add_argument(
        "--lm-eval", metavar="TASKS", help="run tasks of lm-evaluation-harness instead, on Puna's engine"
    )
    suite.add_argument(
        "--include",
        action="append",
        default=[],
        type=Path,
        metavar="FILE.py",
        help="load benchmarks and tasks from this file (repeatable); with --lm-eval, a folder of task files",
    )
    bpb = parser.add_argument_group("bpb")
    bpb.add_argument(
        "--window", type=int, metavar="N", help="tokens of context (default: the length of the training rows)"
    )
    bpb.add_argument("--stride", type=int, metavar="N", help="tokens by which the window moves (default: half of it)")
    bpb.add_argument("--max-bytes", metavar="N", help="use about this much text, such as 200k (default: all)")
    bpb.add_argument("--split", default="heldout", metavar="NAME", help="split of the corpus (default: heldout)")
    bpb.add_argument("--batch", type=int, default=8, metavar="N", help="windows computed at once (default: 8)")


def run(args: argparse.Namespace) -> None:
    """Run the given action."""
    words = args.what
    if not args.lm_eval:
        from puna.core.plugins import include_all

        include_all(args.include)
    if words[0] == "bpb" and len(words) > 1:
        if len(words) != 3:
            raise PunaError("bpb needs a model and a corpus.", "Use: puna eval bpb MODEL CORPUS")
        args.model, args.corpus = map(Path, words[1:])
        bits_per_byte(args)
    elif words == ["list"]:
        _list(args)
    elif len(words) > 1:
        raise PunaError(f"'{' '.join(words)}' is more than one model.", "Use: puna eval MODEL --suite NAMES")
    else:
        args.model = words[0]
        harness(args) if args.lm_eval else benchmarks(args)


def harness(args: argparse.Namespace) -> None:
    """Run tasks of lm-evaluation-harness on Puna's engine and show its table."""
    from puna.core.console import print_json, show_table
    from puna.model.hub import model_directory

    model_directory(args.model)  # a wrong path is reported before torch is loaded
    from puna.evals.evaluate_model import open_model
    from puna.evals.lm_eval_harness import run_harness

    opened = open_model(args.model, device=args.device, max_batch=args.max_batch, fast=args.fast, form=args.form)
    names = [name.strip() for name in args.lm_eval.split(",")]
    if len(args.include) > 1:
        raise PunaError("--lm-eval accepts one --include, a folder.", "Put all task files into it.")
    include = args.include[0] if args.include else None
    found = run_harness(opened.engine, names, limit=args.limit, include=include, chat=opened.chat)
    if args.json:
        print_json(found)
        return
    rows = []
    for task, results in found["results"].items():
        for key, value in results.items():
            metric, _, filtered = key.partition(",")
            if isinstance(value, int | float) and not metric.endswith("_stderr") and filtered:
                error = results.get(f"{metric}_stderr,{filtered}")
                spread = f"± {1.96 * error:.4f}" if isinstance(error, float) else ""
                count = found.get("n-samples", {}).get(task, {}).get("effective", "")
                rows.append([task, metric, filtered, f"{value:.4f}", spread, str(count)])
    show_table(["task", "metric", "filter", "value", "95 %", "items"], rows)


def benchmarks(args: argparse.Namespace) -> None:
    """Run benchmarks and show their table."""
    from puna.core.console import print_json, progress, say, show_table
    from puna.evals.catalogue import select, suites

    if args.suite is None:
        raise PunaError("No benchmark was given.", f"Use --suite with one of: {', '.join(suites())}.")
    select(args.suite)
    directory = _checked_paths(args)
    from puna.evals.benchmarks.dclm_core import centred
    from puna.evals.evaluate_model import default_folder, evaluate_model

    for name, least in (("limit", 1), ("samples", 0), ("max_batch", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise PunaError(f"--{name.replace('_', '-')} {value} is below {least}.", "Use a larger number.")
    with progress(transient=True) as bar:
        tasks: dict[str, Any] = {}

        def on_progress(benchmark: "Benchmark", done: int, total: int) -> None:
            if benchmark.name not in tasks:
                tasks[benchmark.name] = bar.add_task(benchmark.title, total=total)
            bar.update(tasks[benchmark.name], completed=done)

        try:
            results = evaluate_model(
                args.model,
                args.suite,
                out=args.out,
                limit=args.limit,
                data=args.data,
                hub=args.hub,
                instruct=not args.bare,
                samples=args.samples,
                temperature=args.temperature,
                seed=args.seed,
                form=args.form,
                fast=args.fast,
                device=args.device,
                max_batch=args.max_batch,
                corpus=args.corpus,
                against=args.against,
                on_progress=on_progress,
            )
        except KeyboardInterrupt:
            say("Scored items are kept; the same command continues from there.")
            raise
    folder = args.out or default_folder(directory)
    if args.json:
        print_json(results)
        return
    show_table(*table(results))
    for columns, rows in (differences(results), seen(results)):
        if rows:
            print()
            show_table(columns, rows)
    core = centred(results["benchmarks"])
    if core:
        print(f"\nCORE {core['value']:.3f}, mean centred accuracy of {core['tasks']} of 22 tasks")
    say(f"Results are in {folder}; the report is {folder / 'report.html'}.")


def _checked_paths(args: argparse.Namespace) -> Path:
    """Return the model directory. Raises PunaError for a missing model, corpus or data folder; needs no torch."""
    from puna.data.corpus import Corpus
    from puna.evals.datasets import EvalData
    from puna.model.hub import model_directory

    EvalData.find(args.data)
    if args.against:
        model_directory(args.against)
    if args.corpus:
        Corpus.open(args.corpus)
    return model_directory(args.model)


def table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the results for a terminal."""

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{value:.1%}"

    rows = []
    for one in results["benchmarks"]:
        sampled, constant = one["sampled"] or {}, one["baselines"].get("constant")
        best = max((key for key in sampled if key.startswith("pass@")), key=lambda key: int(key[5:]), default="")
        rows.append(
            [
                one["title"],
                f"{one['items']:,}" + ("" if one["items"] == one["of"] else f" of {one['of']:,}"),
                percent(one["value"]),
                "–" if one["interval"] is None else "{:.1f} – {:.1f}".format(*(100 * end for end in one["interval"])),
                percent(sampled["pass@1"]["value"]) if sampled else "–",
                f"{percent(sampled[best]['value'])} @{best[5:]}" if best not in ("", "pass@1") else "–",
                percent(one["baselines"]["chance"]),
                percent(constant["value"]) if constant else "–",
            ]
        )
    return ["benchmark", "items", "greedy", "95 %", "sampled", "pass@k", "chance", "constant"], rows


def differences(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the comparison with another model; no rows without one."""
    rows = []
    for one in results.get("against", {}).get("benchmarks", ()):
        low, high = (100 * value for value in one["interval"])
        rows.append(
            [
                one["benchmark"],
                f"{one['items']:,}",
                f"{one['value']:.1%}",
                f"{one['other']:.1%}",
                f"{100 * one['difference']:+.1f}",
                f"{low:+.1f} to {high:+.1f}",
                "–" if one["p"] is None else f"{one['p']:.3f}",
            ]
        )
    return ["against", "items", "this", "other", "points", "95 %", "p"], rows


def seen(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the items found in a corpus; no rows when none was searched."""
    rows = []
    for one in results["benchmarks"]:
        if found := one.get("contamination"):
            values = [found[key]["value"] for key in ("score_seen", "score_unseen")]
            scores = ["–" if value is None else f"{value:.1%}" for value in values]
            rows.append([one["benchmark"], f"{found['items']:,}", f"{found['seen']:,}", *scores])
    return ["in the corpus", "items", "seen", "score, seen", "score, unseen"], rows


def _list(args: argparse.Namespace) -> None:
    from textwrap import fill

    from puna.core.console import print_json, show_table
    from puna.evals.catalogue import BENCHMARKS
    from puna.evals.datasets import EvalData, first_file
    from puna.evals.origins import ORIGINS, origin

    data = EvalData.find(args.data)
    rows: list[dict[str, Any]] = []
    for one in BENCHMARKS.values():
        file = None if "puna" in one.suites else first_file(one.load, data)
        found = origin(file.name) if file else None
        where = {
            "held": file is None or file.here,
            "hub": file is not None and file.hub,
            "file": file.name if file else None,
            "from": f"{found.source} ({found.form})" if found else None,
        }
        words = {key: getattr(one, key) for key in ("title", "suites", "prompt", "metric", "source")}
        rows.append({"benchmark": one.name, **where, **words})
    if args.json:
        print_json(rows)
        return
    here = ["yes" if row["held"] else "--hub" if row["hub"] else "no" for row in rows]
    show_table(
        ("benchmark", "title", "suites", "here"),
        [
            (row["benchmark"], row["title"], ", ".join(row["suites"]), word)
            for row, word in zip(rows, here, strict=True)
        ],
    )
    missing = [where_from for where_from in ORIGINS if not data.has(where_from.files)]
    if missing:
        print(f"\n--hub: what that option fetches. These files are not here; {data.described}.")
        print("They belong in the folder that --data or PUNA_EVAL_DATA names, compressed or not:\n")
    for where_from in missing:
        print(where_from.files)
        told = f"{where_from.source} ({where_from.form})"
        print(fill(told, 78, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False))


def bits_per_byte(args: argparse.Namespace) -> None:
    """Print bits per byte on the held-out documents of a corpus, with a 95 % interval over documents."""
    directory = _checked_paths(args)
    from puna.core.console import print_json, progress
    from puna.core.units import parse_count
    from puna.data.corpus import Corpus
    from puna.model.store import load_config, load_lineage, load_model
    from puna.text.tokenizer import Tokenizer
    from puna.train.measure.evaluate import bits_per_byte as measure
    from puna.train.measure.machine import best_device

    config, corpus = load_config(directory), Corpus.open(args.corpus)
    tokenizer = Tokenizer.load(directory)
    if tokenizer.hash != corpus.tokenizer_hash:
        raise PunaError(
            f"{args.model} has another tokenizer ({tokenizer.hash[:12]}) than {args.corpus} was built with "
            f"({corpus.tokenizer_hash[:12]}).",
            "Build the corpus with the model's tokenizer.",
        )
    trained = load_lineage(directory).get("recipe", {}).get("train", {}).get("seq_len")
    window = args.window or trained or min(config.max_position_embeddings, MAX_WINDOW)
    if window > config.max_position_embeddings:
        raise PunaError(
            f"--window {window} is longer than the model's context of {config.max_position_embeddings} tokens.",
            "Choose a shorter window.",
        )
    if args.batch < 1:
        raise PunaError(f"--batch {args.batch} is not a number of windows.", "Give 1 or more.")
    model = load_model(directory, device=args.device or best_device())
    with progress(transient=True) as bar:
        task = bar.add_task("windows", total=1000)
        result = measure(
            model,
            corpus,
            split=args.split,
            window=window,
            stride=args.stride,
            max_bytes=None if args.max_bytes is None else parse_count(args.max_bytes),
            batch=args.batch,
            on_progress=lambda share: bar.update(task, completed=round(1000 * share)),
        )
    if args.json:
        print_json({"model": str(args.model), "corpus": str(args.corpus), **result})
        return
    interval = result["interval"]
    spread = f" ± {1.96 * result['standard_error']:.4f} (95 % over documents)" if interval else ""
    print(f"{result['bits_per_byte']:.4f} bits per byte{spread}")
    print(
        f"{result['documents']:,} documents, {result['bytes']:,} bytes, {result['tokens']:,} tokens; "
        f"window {result['window']}, stride {result['stride']}, split {result['split']}"
    )
    if len(result["by_source"]) > 1:
        for source, part in result["by_source"].items():
            print(f"  {source}: {part['bits_per_byte']:.4f} ({part['documents']:,} documents, {part['bytes']:,} bytes)")
