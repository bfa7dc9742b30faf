"""prove on this machine that stopping and resuming changes nothing

Exit codes: 0 when everything is equal, 1 when something differs, 2 for bad input.
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

from puna.core.errors import PunaError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="training recipe, for example recipes/smoke.toml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe's values")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="steps of each run (default: 20)")
    parser.add_argument("--nproc", default="1,2,4", metavar="N,M", help="numbers of processes (default: 1,2,4)")
    parser.add_argument(
        "--layouts", action="store_true", help="hand the run from layout to layout instead (tp, pp, cp; 4 processes)"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the runs in this folder")
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(args: argparse.Namespace) -> None:
    """Run the verification and print what was compared."""
    from puna.core.console import print_json, show_table
    from puna.core.recipe import load
    from puna.train.recipe import Recipe
    from puna.train.run.directory import resolve_corpus
    from puna.train.run.verify_resume import verify_layouts, verify_resume

    processes = _numbers(args.nproc)
    recipe = resolve_corpus(load(Recipe, args.recipe, args.overrides).value)
    if args.keep and args.keep.exists() and any(args.keep.iterdir()):
        raise PunaError(f"{args.keep} is not empty.", "Use a new folder with --keep.")
    with tempfile.TemporaryDirectory(prefix="puna-verify-") as folder:
        where = args.keep or Path(folder)
        if args.layouts:
            checks = verify_layouts(recipe, where, steps=args.steps)
        else:
            checks = verify_resume(recipe, where, steps=args.steps, processes=processes)
    passed = all(check.passed for check in checks)
    if args.json:
        print_json({"passed": passed, "steps": args.steps, "checks": [dataclasses.asdict(check) for check in checks]})
    else:
        rows = [(check.what, check.compared, check.detail, "same" if check.passed else "DIFFERENT") for check in checks]
        show_table(("compared with the straight run", "values", "found", "verdict"), rows)
        print("Stopping and resuming changes nothing." if passed else "Resuming changed something: this is a bug.")
    if not passed:
        sys.exit(1)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise PunaError(f"--nproc {text} is not a list of numbers.", "Use the form 1,2,4.") from None
