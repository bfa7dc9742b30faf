"""measure a model

puna eval bpb MODEL CORPUS: bits per byte of the corpus' held-out documents.
"""

import argparse
from pathlib import Path

from puna.core.errors import PunaError

MAX_WINDOW = 4096
"""Default window of models that do not say on how long rows they were trained."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    commands = parser.add_subparsers(dest="measure", required=True, metavar="MEASURE")
    bpb = commands.add_parser("bpb", help="bits per byte of held-out documents", description=run.__doc__)
    bpb.add_argument("model", type=Path, metavar="MODEL", help="model directory")
    bpb.add_argument("corpus", type=Path, metavar="CORPUS", help="corpus directory")
    bpb.add_argument("--window", type=int, help="tokens of context (default: the rows the model was trained on)")
    bpb.add_argument("--stride", type=int, help="tokens the window moves on (default: half of it)")
    bpb.add_argument("--max-bytes", metavar="N", help="measure on about this much text, such as 200k (default: all)")
    bpb.add_argument("--split", default="heldout", help="part of the corpus (default: heldout)")
    bpb.add_argument("--batch", type=int, default=8, help="windows computed at once (default: 8)")
    bpb.add_argument("--device", help="cpu, cuda or mps (default: the best there is)")
    bpb.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    """Bits per byte of a model on the held-out documents of a corpus, with its 95 % interval over documents."""
    from puna.core.console import print_json, progress
    from puna.core.units import parse_count
    from puna.data.corpus import Corpus
    from puna.model.store import load_config, load_lineage, load_model
    from puna.text.tokenizer import Tokenizer
    from puna.train.evaluate import bits_per_byte
    from puna.train.machine import best_device

    config, corpus = load_config(args.model), Corpus.open(args.corpus)
    tokenizer = Tokenizer.load(args.model)
    if tokenizer.hash != corpus.tokenizer_hash:
        raise PunaError(
            f"{args.model} has another tokenizer ({tokenizer.hash[:12]}) than {args.corpus} was built with "
            f"({corpus.tokenizer_hash[:12]}).",
            "Build the corpus with the model's tokenizer.",
        )
    trained = load_lineage(args.model).get("recipe", {}).get("train", {}).get("seq_len")
    window = args.window or trained or min(config.max_position_embeddings, MAX_WINDOW)
    if window > config.max_position_embeddings:
        raise PunaError(
            f"--window {window} is longer than the model's context of {config.max_position_embeddings} tokens.",
            "Choose a shorter one.",
        )
    if args.batch < 1:
        raise PunaError(f"--batch {args.batch} is not a number of windows.", "Give 1 or more.")
    model = load_model(args.model, device=args.device or best_device())
    with progress(transient=True) as bar:
        task = bar.add_task("windows", total=1000)
        result = bits_per_byte(
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
