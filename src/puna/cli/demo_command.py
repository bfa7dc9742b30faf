"""raise a small model on this machine, from its own files to a page to talk to it"""

import argparse
import socket
import sys
from pathlib import Path
from typing import Any


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--minutes", type=float, default=5.0, metavar="M", help="training time (default: 5)")
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="folder for corpora/, runs/ and models/ (default: the current one)"
    )
    parser.add_argument(
        "--bodies",
        type=int,
        default=96,
        metavar="N",
        help="function bodies sampled for each measurement of code (default: 96)",
    )
    parser.add_argument(
        "--tune-minutes",
        type=float,
        metavar="M",
        help="tuning time, 0 for none (default: 1.2 times --minutes, at most 6)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the data order, the demonstrations and the samples (default: 0)",
    )
    parser.add_argument("--no-chat", action="store_true", help="do not serve the chat page at the end")
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON on stdout")


def run(args: argparse.Namespace) -> None:
    """Run the demo, print what it measured, and serve the model's page if stdin and stdout are a terminal."""
    from puna.core.console import console, print_json, show_table
    from puna.demo.run import run_demo
    from puna.train.report.live import LiveView

    result = run_demo(
        minutes=args.minutes,
        folder=args.folder,
        observers=[LiveView()],
        bodies=args.bodies,
        tune_minutes=args.tune_minutes,
        seed=args.seed,
    )
    if args.json:
        print_json(result)
        return
    show_table(
        ("bits per byte", "", ""),
        [(f"{row['value']:.3f}" if row["value"] else "-", row["name"], row["note"]) for row in result["bits_per_byte"]],
        title="\nheld-out files (lower is better)",
    )
    show_table(
        ("function bodies that parse", "", "95 % interval"),
        [
            (f"{c['parsed']} of {c['sampled']}", c["label"], f"{c['interval'][0]:.0%} to {c['interval'][1]:.0%}")
            for c in result["completions"]
        ],
    )
    for ability in result["abilities"]:
        about = f"{ability['ability']}: {ability['task']}, level {ability['level']}"
        show_table((about, "right", "95 % interval"), [_stage(row) for row in ability["stages"]])
    out = console(stderr=False)
    out.print(f"\nreport  {result['report']}\nmodel   {result['model']}", markup=False)
    out.print(f"chat    puna serve {result['model']}   (or, in the terminal: puna chat)\n", markup=False)
    if not args.no_chat and sys.stdin.isatty() and sys.stdout.isatty():
        from puna.cli import serve_command

        parser = argparse.ArgumentParser()
        serve_command.arguments(parser)
        serve_command.run(parser.parse_args([result["model"], "--port", str(_free_port(8000))]))


def _stage(row: dict[str, Any]) -> tuple[str, ...]:
    low, high = row["greedy_interval"]
    return (row["stage"], f"{row['greedy']:.0%}", f"{low:.0%} to {high:.0%}")


def _free_port(wanted: int) -> int:
    """Return the wanted port if it is free, else 0, which lets the system choose one."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted
