"""tune a model after pretraining, one stage at a time

puna tune sft RECIPE [key=value ...]     supervised fine-tuning on dialogues and demonstrations
puna tune reward RECIPE                  a reward model, from preferences
puna tune rejection RECIPE               sample many answers to each prompt and keep the best
puna tune dpo RECIPE                     direct preference optimisation (IPO, SimPO, KTO)
puna tune rl RECIPE                      reinforcement learning with verifiable rewards
puna tune distill RECIPE                 on-policy distillation from a larger model
puna tune average RECIPE                 the mean of several models
puna tune extend RECIPE                  a longer context
puna tune all RECIPE MODEL               all stages in Llama 3's order, each compared with a control
puna tune STAGE --resume RUN_DIR         continue an interrupted run

A stage writes a model directory, RUN_DIR/model. Exit codes are those of puna train: 0 when the stage is finished, 2 for
bad input, 130 when Ctrl-C stopped it (a checkpoint is saved) and 143 when SIGTERM did.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from puna.core.errors import PunaError, nearest


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("stage", metavar="STAGE", help="one of the stages above")
    words = "recipe file, the model to start from (or its key model), overrides of its keys"
    parser.add_argument("words", nargs="*", metavar="RECIPE [MODEL] key=value", help=words)
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="run directory (default: runs/<recipe name>)")
    parser.add_argument("--resume", type=Path, metavar="RUN_DIR", help="continue this run")
    parser.add_argument("--nproc", type=int, default=1, metavar="N", help="processes on this machine (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the last event as JSON on stdout")
    parser.add_argument(
        "--include",
        action="append",
        default=[],
        type=Path,
        metavar="FILE.py",
        help="load tasks from this file (repeatable); pass it again with --resume",
    )


def run(args: argparse.Namespace) -> None:
    """Check everything that needs no torch, then run the stage here or start its processes."""
    from puna.core.console import print_json, show_table
    from puna.core.plugins import include_all
    from puna.train.run.directory import say_finished
    from puna.tune.recipe import STAGES
    from puna.tune.stages import finished_stage, new_stage, resumed_stage, runner, settled
    from puna.tune.way.report import stage_table

    include_all(args.include)
    if args.stage not in STAGES:
        raise PunaError(f"'{args.stage}' is not a stage of tuning.", nearest(args.stage, STAGES))
    if args.nproc < 1:
        raise PunaError(f"--nproc {args.nproc} is not a number of processes.", "Use 1 or more.")
    rank = int(os.environ.get("RANK", 0))
    if args.resume:
        if args.run_dir:
            raise PunaError("--resume and --run-dir were both given.", "--resume alone names the run directory.")
        run_dir = args.resume
        recipe = resumed_stage(run_dir, args.words, stage=args.stage, first=rank == 0)
        if finished := finished_stage(run_dir, recipe):
            if rank == 0:
                say_finished(run_dir, finished, f"puna tune {args.stage}")
                if args.json:
                    print_json(finished)
            return
    else:
        if not args.words:
            raise PunaError("No recipe was given.", f"Try: puna tune {args.stage} RECIPE, or --resume RUN_DIR.")
        path, words = Path(args.words[0]), list(args.words[1:])
        if words and "=" not in words[0]:
            words[0] = f"model={words[0]}"
        recipe, run_dir = new_stage(path, words, args.run_dir, stage=args.stage, first=rank == 0)
    recipe = settled(recipe)
    if args.nproc > 1 and args.stage in ("all", "average", "rejection"):
        raise PunaError(f"puna tune {args.stage} runs in one process.", "Omit --nproc.")
    if args.nproc > 1 and "RANK" not in os.environ:
        from puna.train.run.launch import launch

        where = ["--resume", str(run_dir)] if args.resume else ["--run-dir", str(run_dir)]
        included = [word for path in args.include for word in ("--include", str(path))]
        given = [*included, *(["--json"] if args.json else [])]
        command = [sys.executable, "-m", "puna", "tune", args.stage, *args.words, *where, *given]
        sys.exit(launch(command, args.nproc))

    from puna.train.report.live import LiveView

    observers = [LiveView()] if rank == 0 else []
    try:
        event = runner(args.stage)(recipe, run_dir, resume=bool(args.resume), observers=observers)
    except KeyboardInterrupt:
        # As in puna train: without waiting for a checkpoint in the background.
        print("puna tune: interrupted.", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGINT)
    if args.json and rank == 0:
        print_json(event)
    elif "rows" in event:
        show_table(*stage_table(event["rows"]))
    if event["kind"] != "end":
        sys.exit(128 + signal.Signals[event["signal"]])
