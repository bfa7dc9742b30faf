"""Train a tokenizer, or compare tokenizers by bytes per token."""

import argparse
from pathlib import Path

from puna.core.console import print_json, say, show_table
from puna.core.errors import PunaError
from puna.core.units import format_bytes


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="train | eval")
    train = commands.add_parser("train", help="train byte-level BPE with Llama 3's pattern and special tokens")
    train.add_argument("sources", nargs="+", metavar="SOURCE", help="file, folder, glob or corpus directory")
    train.add_argument("--vocab-size", type=int, required=True, help="total number of tokens, including special tokens")
    train.add_argument("-o", "--out", type=Path, required=True, help="folder for the tokenizer's files")
    train.add_argument("--reserved", type=int, default=16, help="reserved slots for later special tokens (default 16)")
    train.add_argument("--replace", action="store_true", help="replace an existing tokenizer")
    train.add_argument("--json", action="store_true", help="print the result as JSON")
    measure = commands.add_parser("eval", help="bytes per token, by source, one column per tokenizer")
    measure.add_argument("tokenizers", nargs="+", metavar="TOKENIZER", help="folder, tokenizer.json, tokenizer.model")
    measure.add_argument("--on", nargs="+", required=True, metavar="SOURCE", help="file, folder, glob or corpus")
    measure.add_argument("--beside", nargs="+", default=[], metavar="TOKENIZER", help="others to compare with")
    measure.add_argument("--json", action="store_true", help="print the table as JSON")


def run(args: argparse.Namespace) -> None:
    """Train or compare."""
    (_train if args.action == "train" else _eval)(args)


def _train(args: argparse.Namespace) -> None:
    from puna.data.reading.text_sources import read_texts
    from puna.text.tokenizer import train_tokenizer

    if (args.out / "tokenizer.json").exists() and not args.replace:
        raise PunaError(f"{args.out} already has a tokenizer.", "Choose another folder, or use --replace.")
    tokenizer = train_tokenizer((text for _, text in read_texts(args.sources)), args.vocab_size, reserved=args.reserved)
    tokenizer.save(args.out)
    if tokenizer.vocab_size < args.vocab_size:
        say(f"The text has pairs for only {tokenizer.vocab_size:,} of {args.vocab_size:,} tokens; use more text.")
    if args.json:
        print_json({"path": str(args.out), "vocab_size": tokenizer.vocab_size, "hash": tokenizer.hash})
        return
    say(f"{args.out}: {tokenizer.vocab_size:,} tokens, {tokenizer.hash[:12]}.")


def _eval(args: argparse.Namespace) -> None:
    from puna.data.reading.text_sources import read_texts
    from puna.text.compare import compare
    from puna.text.tokenizer import Tokenizer

    tokenizers = {name: Tokenizer.load(Path(name)) for name in [*args.tokenizers, *args.beside]}
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
