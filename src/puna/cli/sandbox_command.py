"""check how well this machine isolates untrusted code

puna sandbox check                the level this machine reaches, wall by wall, and the result of every attack
puna sandbox check --no-attacks   the walls alone
puna sandbox check --json         the same as one JSON value

PUNA_SANDBOX=bwrap, docker:IMAGE, podman:IMAGE, ssh:HOST or command:WORDS checks the sandbox there.
"""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from puna.core.errors import PunaError

if TYPE_CHECKING:
    from puna.sandbox.check import AttackOutcome

LEVELS = ("limits", "confined", "isolated")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("action", choices=["check"], help="check the sandbox")
    parser.add_argument("--floor", choices=LEVELS, help="fail if the level is below this one")
    parser.add_argument("--ceiling", choices=LEVELS, default="isolated", help="use no more walls than this level has")
    parser.add_argument("--kind", choices=["resource", "escape", "reward"], help="run attacks of this kind only")
    parser.add_argument("--no-attacks", action="store_true", help="check the walls without attacks")
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(args: argparse.Namespace) -> None:
    """Grade this machine and attack it. Raises PunaError when an attack succeeds or the floor is not reached."""
    from puna.core.console import print_json, progress, show_table
    from puna.sandbox import check
    from puna.sandbox.attacks import ATTACKS
    from puna.sandbox.remote import RemoteSandbox, place
    from puna.sandbox.result import LEVELS as ORDER
    from puna.sandbox.worker import Sandbox

    sandbox = RemoteSandbox(place()) if place() else Sandbox(args.ceiling)
    try:
        chosen = [attack for attack in ATTACKS if args.kind in (None, attack.kind) and not args.no_attacks]
        with progress(transient=True) as shown:
            task = shown.add_task("attacks", total=len(chosen) or None)
            outcomes = (
                check.run_attacks(sandbox, chosen, on_outcome=lambda outcome: shown.advance(task)) if chosen else []
            )
    finally:
        sandbox.close()
    bad = [outcome for outcome in outcomes if not outcome.good]
    if args.json:
        rows = [asdict(outcome) | {"good": outcome.good} for outcome in outcomes]
        print_json({"level": sandbox.level, "walls": sandbox.walls, "machine": check.machine(), "attacks": rows})
    else:
        facts = check.machine()
        print(f"level: {sandbox.level}   ({facts['user']}, Python {facts['python']}, {facts['system']})\n")
        show_table(
            ["wall", "in place"], [[name, f"no: {why}" if why else "yes"] for name, why in sandbox.walls.items()]
        )
        if outcomes:
            print()
            show_table(
                ["attack", "on", "contained", "what stopped it", "left behind"],
                [
                    [one.name, one.kind, _verdict(one), one.stopped_by.replace("\n", " ")[:90], one.left]
                    for one in outcomes
                ],
            )
            contained = sum(one.contained for one in outcomes)
            print(f"\n{contained} of {len(outcomes)} attacks contained, {len(bad)} against what this level promises.")
    if bad:
        raise PunaError(
            f"{len(bad)} of {len(outcomes)} attacks were not contained: {', '.join(one.name for one in bad)}.",
            "Do not run untrusted code here.",
        )
    if args.floor and ORDER.index(sandbox.level) < ORDER.index(args.floor):
        raise PunaError(
            f"This machine's sandbox reaches level '{sandbox.level}', below the floor '{args.floor}'.",
            "The table above shows which protections are missing.",
        )


def _verdict(outcome: "AttackOutcome") -> str:
    if outcome.contained:
        return "yes"
    return "NO" if outcome.expected else "not at this level"
