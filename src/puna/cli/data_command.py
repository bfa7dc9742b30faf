"""build and inspect corpora: from files, the standard library or the Hub"""

import argparse
from pathlib import Path
from typing import Any

from puna.core.console import print_json, say, show_table
from puna.core.recipe import load
from puna.core.units import format_bytes, format_count


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="build | inspect")
    build = commands.add_parser("build", help="build a corpus directory from a recipe")
    build.add_argument("recipe", type=Path, help="data recipe (.toml)")
    build.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. heldout.share=0.02 root=/data")
    build.add_argument("-o", "--out", type=Path, required=True, help="corpus directory to create")
    build.add_argument("--replace", action="store_true", help="replace an existing corpus once the new one is complete")
    build.add_argument("--json", action="store_true", help="print the manifest as JSON")
    many = build.add_argument_group("many processes or machines", "with datatrove (extra 'cluster')")
    many.add_argument("--executor", choices=["local", "slurm"], help="run the stages as local processes or Slurm jobs")
    many.add_argument("--tasks", type=int, default=8, help="number of parts to split the sources into (default: 8)")
    many.add_argument(
        "--workers", type=int, default=2, help="parts processed at the same time, with local (default: 2)"
    )
    many.add_argument("--partition", default="", help="Slurm partition")
    many.add_argument("--time", default="24:00:00", help="Slurm time limit of a part (default: 24:00:00)")
    inspect = commands.add_parser(
        "inspect", help="print counts, sources, licences, drops, histograms and three documents"
    )
    inspect.add_argument("corpus", type=Path, help="corpus directory")
    inspect.add_argument("--verify", action="store_true", help="recompute the hash of every shard")
    inspect.add_argument("--json", action="store_true", help="print everything as one JSON value")


def run(args: argparse.Namespace) -> None:
    """Run the action that was named."""
    (_build if args.action == "build" else _inspect)(args)


def _build(args: argparse.Namespace) -> None:
    from puna.data.recipe import DataRecipe

    recipe = load(DataRecipe, args.recipe, args.overrides).value
    if args.executor:
        from puna.data.cluster import build_on_cluster

        manifest = build_on_cluster(
            recipe,
            args.out,
            executor=args.executor,
            tasks=args.tasks,
            workers=args.workers,
            partition=args.partition,
            time=args.time,
            replace=args.replace,
        )
        if manifest is None:
            say(f"The jobs were submitted; the last one writes {args.out}.")
            return
    else:
        from puna.data.build import build_corpus

        manifest = build_corpus(recipe, args.out, replace=args.replace)
    if args.json:
        print_json(manifest)
        return
    train, heldout = manifest["splits"]["train"], manifest["splits"]["heldout"]
    _show_sources(manifest["sources"])
    _show_drops(manifest["drops"])
    say(
        f"{args.out}: {train['documents']:,} documents, {format_count(train['tokens'])} tokens, "
        f"{format_bytes(train['bytes'])} for training; {heldout['documents']:,} documents, "
        f"{format_bytes(heldout['bytes'])} held out."
    )


def _inspect(args: argparse.Namespace) -> None:
    from puna.data.corpus import Corpus
    from puna.data.summary import bar, summarise

    summary = summarise(Corpus.open(args.corpus, verify=args.verify))
    if args.json:
        print_json(summary)
        return
    show_table(
        ["split", "documents", "tokens", "bytes"],
        [[name, s["documents"], s["tokens"], s["bytes"]] for name, s in summary["splits"].items()],
        title=f"{summary['name']} · {summary['bytes_per_token']:.2f} bytes per token · "
        f"stream of {format_count(summary['stream_tokens'])} tokens · {summary['content_hash'][:12]}",
    )
    _show_sources(summary["sources"])
    licences = [
        [split, licence, count["documents"], count["tokens"]]
        for split, counts in summary["licences"].items()
        for licence, count in counts.items()
    ]
    show_table(["split", "licence", "documents", "tokens"], licences)
    _show_drops(summary["drops"])
    most = max(row["documents"] for row in summary["document_tokens"])
    show_table(
        ["tokens", "documents", ""],
        [[f"{r['from']:,}+", r["documents"], bar(r["documents"], most)] for r in summary["document_tokens"]],
        title="length of documents",
    )
    top = summary["commonest_tokens"]
    show_table(
        ["token", "share", ""],
        [[repr(r["text"]), f"{r['share']:.2%}", bar(r["share"], top[0]["share"])] for r in top],
        title="commonest tokens",
    )
    for document in summary["documents"]:
        show_table([f"{document['source']}/{document['name']} · {document['tokens']:,} tokens"], [[document["start"]]])


def _show_sources(sources: list[dict[str, Any]]) -> None:
    rows = []
    for entry in sources:
        train = entry["train"]
        row = [entry["name"], entry["files"], entry["documents_read"], train["documents"], train["tokens"]]
        rows.append([*row, entry["epochs"], entry["heldout"]["documents"]])
    show_table(["source", "files", "read", "trained on", "tokens", "epochs", "held out"], rows)


def _show_drops(drops: dict[str, dict[str, dict[str, int]]]) -> None:
    rows = [
        [source, reason, count["documents"], count["bytes"]]
        for source, reasons in drops.items()
        for reason, count in reasons.items()
    ]
    if rows:
        show_table(["source", "dropped for", "documents", "bytes"], rows)
