"""generate problems that can be checked, and check answers

puna tasks list                                    every task, what is scored, and the score of a constant answer
puna tasks sample planning.grid --level 3 [-n K]   problems; --json writes them as lines for a file
puna tasks score FILE                              scores of a file of answers, with 95 % intervals
"""

import argparse
import json
from pathlib import Path

from puna.core.errors import PunaError

LISTED = 50
"""Problems per task on which `list` measures constant answers, enough to distinguish 10 % from 30 %."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listed = actions.add_parser("list", help="list every task, its levels and what is scored")
    listed.add_argument("--json", action="store_true", help="print one JSON list, with a baseline for every level")
    sample = actions.add_parser("sample", help="generate problems")
    sample.add_argument("task", metavar="TASK", help="name of a task (see puna tasks list)")
    sample.add_argument("--level", type=int, default=1, metavar="N", help="difficulty, from 1 (default: 1)")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the first problem (default: 0)")
    sample.add_argument("-n", "--count", type=int, default=1, metavar="K", help="number of problems (default: 1)")
    sample.add_argument("--solve", action="store_true", help="also print the reference answer")
    sample.add_argument("--json", action="store_true", help="print one JSON object per line, as `score` reads them")
    score = actions.add_parser("score", help="score a file of answers")
    score.add_argument("file", type=Path, metavar="FILE", help="JSON lines of task, level, seed, answer")
    score.add_argument("--json", action="store_true", help="print one JSON object, with a verdict for every row")
    for action in (listed, sample, score):
        action.add_argument(
            "--include",
            action="append",
            default=[],
            type=Path,
            metavar="FILE.py",
            help="load tasks from this file (repeatable)",
        )


def run(args: argparse.Namespace) -> None:
    """Run the given action."""
    from puna.core.plugins import include_all

    include_all(args.include)
    {"list": _list, "sample": _sample, "score": _score}[args.action](args)


def _list(args: argparse.Namespace) -> None:
    from puna.core.console import print_json
    from puna.tasks.catalogue import TASKS, baseline

    if args.json:
        entries = []
        for task in TASKS.values():
            constants = [baseline(task.name, level, LISTED)._asdict() for level in range(1, len(task.levels) + 1)]
            entries.append(
                {
                    "task": task.name,
                    "scored": task.scored,
                    "instruction": task.instruction,
                    "levels": [
                        {"level": level, "what": what, "constant": constant}
                        for level, (what, constant) in enumerate(zip(task.levels, constants, strict=True), 1)
                    ],
                }
            )
        print_json(entries)
        return
    width = max(map(len, TASKS))
    for task in TASKS.values():
        first, last = (baseline(task.name, level, LISTED).score for level in (1, len(task.levels)))
        print(f"{task.name:<{width}}  {len(task.levels)} levels   constant {first:.0%} … {last:.0%}")
        print(f"{'':<{width}}  {task.levels[0]} … {task.levels[-1]}")
        print(f"{'':<{width}}  scored: {task.scored}")
    print(
        f"\nconstant: mean score of the best constant answer at the first and the last level, {LISTED} problems each."
    )


def _sample(args: argparse.Namespace) -> None:
    from puna.tasks.catalogue import find

    if args.count < 1:
        raise PunaError(f"-n {args.count} is not a number of problems.", "Use 1 or more.")
    task = find(args.task)
    for seed in range(args.seed, args.seed + args.count):
        problem = task.sample(seed, args.level)
        if args.json:
            reference = {"answer": task.solution(problem)} if args.solve else {}
            print(json.dumps({"problem": problem.plain(), **reference}, ensure_ascii=False))
            continue
        if seed == args.seed:
            print(f"# {task.name}, level {args.level}: {task.levels[args.level - 1]}\n\n{task.instruction}")
        print(f"\n# seed {seed}\n\n{problem.prompt}")
        if args.solve:
            print(f"\n{task.solution(problem)}")


def _score(args: argparse.Namespace) -> None:
    from puna.core.console import print_json, show_table
    from puna.tasks.score_file import read_rows, score_rows, table

    scored = score_rows(read_rows(args.file))
    lines = table(scored)
    if args.json:
        rows = [
            {
                "task": problem.task,
                "level": problem.level,
                "seed": problem.seed,
                "score": verdict.score,
                "breakdown": verdict.breakdown,
                "reason": verdict.reason,
            }
            for problem, verdict in scored
        ]
        print_json({"table": [line._asdict() for line in lines], "rows": rows})
        return
    show_table(
        ("task", "level", "problems", "solved", "95 %", "score", "constant"),
        [
            (
                line.task,
                line.level,
                line.problems,
                f"{line.solved:.1%}",
                f"{line.low:.1%} – {line.high:.1%}",
                f"{line.score:.3f}",
                f"{line.constant:.3f}",
            )
            for line in lines
        ],
    )
