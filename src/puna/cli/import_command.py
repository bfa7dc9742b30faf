"""import a model in Hugging Face layout

The source is a folder, or a repository on Hugging Face (extra 'hub'). The copy is checked: it
loads, its weights and logits are finite, and the written directory gives the same logits, which are compared
with those of transformers if that is installed.
"""

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", metavar="DIR|HF-ID", help="folder, or org/name on Hugging Face (also hf:org/name)")
    parser.add_argument("-o", "--out", type=Path, required=True, help="model directory to create, such as models/x")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def run(args: argparse.Namespace) -> None:
    """Import and print what it is."""
    from puna.core.console import print_json, say
    from puna.core.errors import PunaError
    from puna.core.units import format_count
    from puna.model.hub import find_model, model_name

    if args.out.exists():  # before anything is fetched or loaded
        raise PunaError(f"{args.out} exists already.", "Choose another name or remove it first.")
    source = find_model(args.source, weights=True)
    from puna.convert.importer import import_model

    # The lineage travels with the model, so it gets the folder's name and not its path on this machine.
    origin = model_name(args.source) if Path(args.source).exists() else args.source.removeprefix("hf:")
    lineage = import_model(source, args.out, origin=origin)
    if args.json:
        print_json({"directory": str(args.out), **lineage})
        return
    say(f"{format_count(lineage['parameters'])} parameters ({lineage['stage']}).")
    print(args.out)
