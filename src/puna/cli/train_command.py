"""train a model from a recipe, or resume a run

Exit codes: 0 when the run is finished, 2 for bad input, 130 when Ctrl-C stopped it and 143 when SIGTERM did. The first
Ctrl-C or SIGTERM finishes the step and saves a checkpoint; a second Ctrl-C exits at once.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from puna.core.errors import PunaError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("words", nargs="*", metavar="RECIPE key=value", help="recipe file, then overrides of its keys")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="run directory (default: runs/<recipe name>)")
    parser.add_argument("--resume", type=Path, metavar="RUN_DIR", help="continue this run")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="use the layout of this plan (puna plan ... --json)")
    parser.add_argument("--nproc", type=int, default=1, metavar="N", help="processes on this machine (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the last event as JSON on stdout")


def run(args: argparse.Namespace) -> None:
    """Check everything that needs no torch, then train here or start the training processes."""
    from puna.core.console import console, print_json
    from puna.train.report.live import LiveView
    from puna.train.run.directory import finished_event, new_run, resumed_run, say_finished, settled

    rank = int(os.environ.get("RANK", 0))
    starting = args.nproc > 1 and "RANK" not in os.environ  # this process only starts the training processes
    if args.nproc < 1:
        raise PunaError(f"--nproc {args.nproc} is not a number of processes.", "Use 1 or more.")
    if args.resume:
        if args.run_dir:
            raise PunaError("--resume and --run-dir were both given.", "--resume alone names the run directory.")
        run_dir, recipe = args.resume, resumed_run(args.resume, args.words, first=rank == 0)
        if finished := finished_event(run_dir, recipe):
            if rank == 0:
                say_finished(run_dir, finished, "puna train")
                if args.json:
                    print_json(finished)
            return
    else:
        if not args.words:
            raise PunaError("No recipe was given.", "Try: puna train recipes/laptop.toml, or --resume RUN_DIR.")
        recipe, run_dir = new_run(Path(args.words[0]), args.words[1:], args.run_dir, first=rank == 0)
    if args.plan:
        from puna.train.planning.from_plan import apply_plan

        recipe, note = apply_plan(recipe, args.plan, int(os.environ.get("WORLD_SIZE", args.nproc)))
        if rank == 0 and not starting:
            console().print(note, markup=False)
    recipe = settled(recipe)
    if starting:
        from puna.train.run.launch import launch

        where = ["--resume", str(run_dir)] if args.resume else ["--run-dir", str(run_dir)]
        given = [*(["--plan", str(args.plan)] if args.plan else []), *(["--json"] if args.json else [])]
        command = [sys.executable, "-m", "puna", "train", *args.words, *where, *given]
        sys.exit(launch(command, args.nproc))

    from puna.train.pretrain import train

    try:
        event = train(recipe, run_dir, resume=bool(args.resume), observers=[LiveView()] if rank == 0 else [])
    except KeyboardInterrupt:
        # Exit at once, without waiting for a checkpoint that a background thread may be writing: files are renamed
        # when they are complete.
        print("puna train: interrupted.", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGINT)
    if args.json and rank == 0:
        print_json(event)
    if event["kind"] != "end":
        sys.exit(128 + signal.Signals[event["signal"]])
