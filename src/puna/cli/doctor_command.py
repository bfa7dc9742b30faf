"""show what Puna can use on this machine, what is missing, and how to get it"""

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(args: argparse.Namespace) -> None:
    """Print the findings."""
    from rich.markup import escape

    from puna.core.console import console, print_json
    from puna.doctor import examine, summary

    findings = examine()
    if args.json:
        print_json(summary(findings))
        return
    out = console(stderr=False)
    for one in findings:
        mark, colour = {"ok": ("ok", "green"), "note": ("note", "yellow"), "missing": ("missing", "red")}[one.state]
        out.print(f"[{colour}]{mark:<8}[/]{one.name:<14}{escape(one.found)}")
        if one.advice:
            out.print(f"{'':22}{escape(one.advice)}", style="dim")
