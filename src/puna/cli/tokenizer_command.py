"""train a tokenizer, or compare tokenizers by bytes per token"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from puna.core.console import Progress, print_json, progress, say, show_table
from puna.core.errors import PunaError
from puna.core.units import format_bytes


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="train | eval")
    train = commands.add_parser("train", help="train byte-level BPE with Llama 3's pattern and special tokens")
    train.add_argument("sources", nargs="+", metavar="SOURCE", help="file, folder, glob or corpus directory")
    train.add_argument(
        "--vocab-size", type=int, required=True, metavar="N", help="number of tokens, special ones included"
    )
    train.add_argument("-o", "--out", type=Path, required=True, help="folder for the tokenizer's files")
    train.add_argument(
        "--reserved", type=int, default=16, metavar="N", help="empty slots for later special tokens (default: 16)"
    )
    train.add_argument("--replace", action="store_true", help="replace an existing tokenizer")
    train.add_argument("--json", action="store_true", help="print the result as JSON")
    measure = commands.add_parser("eval", help="compare bytes per token, one row per source, one column per tokenizer")
    measure.add_argument(
        "tokenizers",
        nargs="+",
        metavar="TOKENIZER",
        help="tokenizer, model or run directory, tokenizer.json or tokenizer.model",
    )
    measure.add_argument("--on", nargs="+", required=True, metavar="SOURCE", help="file, folder, glob or corpus")
    measure.add_argument(
        "--beside", nargs="+", default=[], metavar="TOKENIZER", help="further tokenizers to compare with"
    )
    measure.add_argument("--json", action="store_true", help="print the table as JSON")


def run(args: argparse.Namespace) -> None:
    """Run the action that was named."""
    (_train if args.action == "train" else _eval)(args)


def _train(args: argparse.Namespace) -> None:
    from puna.data.reading.text_sources import read_texts
    from puna.text.tokenizer import train_tokenizer

    if (args.out / "tokenizer.json").exists() and not args.replace:
        raise PunaError(f"{args.out} contains a tokenizer already.", "Choose another folder, or give --replace.")
    with progress(transient=True) as bar:
        texts = _counted((text for _, text in read_texts(args.sources)), bar)
        tokenizer = train_tokenizer(texts, args.vocab_size, reserved=args.reserved)
    tokenizer.save(args.out)
    if tokenizer.vocab_size < args.vocab_size:
        say(f"The text has pairs for {tokenizer.vocab_size:,} of {args.vocab_size:,} tokens. Give more text for more.")
    if args.json:
        print_json({"path": str(args.out), "vocab_size": tokenizer.vocab_size, "hash": tokenizer.hash})
        return
    say(f"{args.out}: {tokenizer.vocab_size:,} tokens, {tokenizer.hash[:12]}.")


def _counted(texts: Iterable[str], bar: Progress) -> Iterator[str]:
    """The texts, their characters counted in a progress bar."""
    task = bar.add_task("reading, characters")
    for text in texts:
        yield text
        bar.advance(task, len(text))
    bar.update(task, description="learning merges from characters")


def _eval(args: argparse.Namespace) -> None:
    from puna.data.reading.text_sources import read_texts
    from puna.text.compare import compare
    from puna.text.tokenizer import Tokenizer

    tokenizers = {name: Tokenizer.load(_place(name)) for name in [*args.tokenizers, *args.beside]}
    rows = compare(tokenizers, read_texts(args.on, split="heldout"))
    if args.json:
        sizes = {name: tokenizer.vocab_size for name, tokenizer in tokenizers.items()}
        print_json({"vocab_size": sizes, "rows": rows})
        return
    columns = [f"{name} ({tokenizer.vocab_size:,})" for name, tokenizer in tokenizers.items()]
    table = []
    for row in rows:
        values = [row["bytes_per_token"][name] for name in tokenizers]
        table.append([row["source"], format_bytes(row["bytes"]), *("" if v is None else f"{v:.3f}" for v in values)])
    show_table(["source", "size", *columns], table, title="bytes per token (tokenizer, its vocabulary)")


def _place(name: str) -> Path:
    """Where a tokenizer is: a run directory keeps it with its model."""
    path = Path(name)
    return path / "model" if (path / "model" / "config.json").is_file() else path
