"""Towers of Hanoi between any two states. Breadth-first search over the 3^n states finds the fewest moves.

The pegs are a, b and c; a state names the disks on each from the bottom up, larger numbers for larger disks, and `-`
for an empty peg: `32 1 -`. A move is two pegs, from and to: `ac`.
"""

import itertools
from collections.abc import Iterator

from puna.tasks import answer_parser
from puna.tasks.contract import Data, Draw, Task, Verdict, refused
from puna.tasks.problems import plan_scoring

Pegs = tuple[int, ...]
"""The peg (0 to 2) of each disk, the smallest disk first."""

_PEGS = "abc"
# (disks, fewest moves) of each level
_LEVELS = ((2, 1), (2, 2), (3, 3), (3, 5), (4, 7), (5, 12), (6, 24))


def generate(draw: Draw, level: int) -> tuple[str, Data]:
    """Two states at least as many moves apart as the level says; up to level 2, at most two."""
    count, fewest = _LEVELS[level - 1]
    while True:
        start = tuple(draw.randrange(3) for _ in range(count))
        steps = plan_scoring.distances(plan_scoring.search(start, _neighbours))
        far = sorted(state for state, distance in steps.items() if fewest <= distance <= (2 if level <= 2 else 999))
        if far:
            goal = draw.choice(far)
            break
    return f"{_spell(start)} to {_spell(goal)}", {"start": list(start), "goal": list(goal), "best": steps[goal]}


def _spell(state: Pegs) -> str:
    pegs = ["".join(str(disk + 1) for disk in reversed(range(len(state))) if state[disk] == peg) for peg in range(3)]
    return " ".join(peg or "-" for peg in pegs)


def moves(state: Pegs) -> Iterator[tuple[str, Pegs]]:
    """Yield every legal move with the state after it."""
    top = [next((disk for disk in range(len(state)) if state[disk] == peg), len(state)) for peg in range(3)]
    for here in range(3):
        for there in range(3):
            if top[here] < top[there]:
                disk = top[here]
                yield _PEGS[here] + _PEGS[there], (*state[:disk], there, *state[disk + 1 :])


def _neighbours(state: Pegs) -> list[Pegs]:
    return [after for _, after in moves(state)]


def grade(data: Data, text: str) -> Verdict:
    """Follow the moves; each must be legal, and the last must reach the goal."""
    found = answer_parser.value(text)
    if found.text is None:
        return refused(found.reason)
    plan = answer_parser.words(found.text, most=plan_scoring.MAX_STEPS)
    if plan is None:
        return plan_scoring.invalid("The answer is not a row of moves.")
    state: Pegs = tuple(data["start"])
    for done, move in enumerate(plan):
        legal = dict(moves(state))
        if move not in legal:
            return plan_scoring.invalid(f"Move {done + 1} is not possible.", done / len(plan))
        state = legal[move]
    if state != tuple(data["goal"]):
        return plan_scoring.invalid("The moves do not end in the goal.", 1.0)
    return plan_scoring.verdict(len(plan), data["best"])


def solve(data: Data) -> str:
    """Write a shortest sequence of moves."""
    start, goal = tuple(data["start"]), tuple(data["goal"])
    states = plan_scoring.shortest(start, goal, _neighbours)
    plan = []
    for here, there in itertools.pairwise(states):
        plan.append(next(move for move, after in moves(here) if after == there))
    return "answer: " + " ".join(plan)


TASKS = (
    Task(
        "planning.hanoi",
        "fewest moves 1, more 0.5",
        "Three pegs a, b, c hold disks, written from the bottom up; a larger number is a larger disk, - an empty "
        "peg. Turn "
        "the first situation into the second; only top disks move, never onto a smaller one. A move names two pegs: ac "
        "moves a disk from a to c. Give the fewest moves, with blanks between them, on a line that begins with the "
        "word "
        "answer and a colon.",
        (
            "2 disks, 1 or 2 moves",
            "2 disks, 2 moves",
            *(f"{count} disks, {fewest} moves or more" for count, fewest in _LEVELS[2:]),
        ),
        generate,
        grade,
        solve,
        tuple(f"answer: {here}{there}" for here in _PEGS for there in _PEGS if here != there),
    ),
)
