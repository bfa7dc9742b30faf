"""write a run's report as one self-contained HTML page

The page is one file without scripts or requests. It can be written while the run is still going.
"""

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run directory, such as runs/laptop")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="file to write (default: RUN_DIR/report.html)"
    )
    parser.add_argument("--json", action="store_true", help="also print the run's figures as JSON")


def run(args: argparse.Namespace) -> None:
    """Write the page and print its path."""
    from puna.core.console import print_json
    from puna.train.report.page import write_report
    from puna.train.report.run_data import load_run, summary

    path = write_report(args.run_dir, args.output)
    if args.json:
        print_json({"report": str(path), **summary(load_run(args.run_dir))})
    else:
        print(path)
