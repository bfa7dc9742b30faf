"""Blocks world: rebuild towers, one free block at a time. A search from both ends finds the fewest moves.

A tower is a word, its first letter on the table. A move is `A>B` (put A, which has nothing on it, onto B, which has
nothing on it) or `A>table`.
"""

import itertools
from collections.abc import Iterator

from puna.tasks import answer_parser
from puna.tasks.contract import Data, Draw, Task, Verdict, refused
from puna.tasks.problems import plan_scoring

Towers = tuple[str, ...]
"""Towers in alphabetical order, so that equal states are equal values."""

_NAMES = "ABCDEFGHIJ"
# (blocks, fewest moves, most moves) of each level
_LEVELS = ((2, 1, 1), (3, 1, 2), (3, 2, 4), (4, 3, 5), (5, 4, 6), (6, 5, 9))


def generate(draw: Draw, level: int) -> tuple[str, Data]:
    """Two states of the same blocks, as many moves apart as the level says."""
    count, fewest, most = _LEVELS[level - 1]
    while True:
        names = draw.sample(_NAMES, count)
        start, goal = _stack(draw, names), _stack(draw, names)
        best = len(_way(start, goal)) - 1
        if fewest <= best <= most:
            return f"{' '.join(start)} to {' '.join(goal)}", {"start": list(start), "goal": list(goal), "best": best}


def _stack(draw: Draw, names: list[str]) -> Towers:
    """Blocks in random order, each put on a random tower or on the table."""
    towers: list[str] = []
    for name in draw.sample(names, len(names)):
        place = draw.randrange(len(towers) + 1)
        if place == len(towers):
            towers.append(name)
        else:
            towers[place] += name
    return tuple(sorted(towers))


def moves(state: Towers) -> Iterator[tuple[str, str, Towers]]:
    """Yield every legal move: the block, what it is put onto, and the state after it."""
    for tower in state:
        rest = tuple(other for other in state if other != tower)
        below = (tower[:-1],) if len(tower) > 1 else ()
        if below:
            yield tower[-1], "table", tuple(sorted((*rest, *below, tower[-1])))
        for other in rest:
            after = (*(left for left in rest if left != other), *below, other + tower[-1])
            yield tower[-1], other[-1], tuple(sorted(after))


def _way(start: Towers, goal: Towers) -> list[Towers]:
    return plan_scoring.shortest(start, goal, lambda state: [after for _, _, after in moves(state)])


def grade(data: Data, text: str) -> Verdict:
    """Follow the moves; each must be legal, and the last must reach the goal."""
    found = answer_parser.value(text)
    if found.text is None:
        return refused(found.reason)
    plan = answer_parser.words(found.text, most=plan_scoring.MAX_STEPS)
    if plan is None:
        return plan_scoring.invalid("The answer is not a row of moves.")
    state: Towers = tuple(sorted(data["start"]))
    for done, move in enumerate(plan):
        legal = {f"{block}>{onto}": after for block, onto, after in moves(state)}
        if move not in legal:
            return plan_scoring.invalid(f"Move {done + 1} is not possible.", done / len(plan))
        state = legal[move]
    if state != tuple(sorted(data["goal"])):
        return plan_scoring.invalid("The moves do not end in the goal.", 1.0)
    return plan_scoring.verdict(len(plan), data["best"])


def solve(data: Data) -> str:
    """Write a shortest sequence of moves."""
    states = _way(tuple(sorted(data["start"])), tuple(sorted(data["goal"])))
    plan = []
    for here, there in itertools.pairwise(states):
        plan.append(next(f"{block}>{onto}" for block, onto, after in moves(here) if after == there))
    return "answer: " + " ".join(plan)


TASKS = (
    Task(
        "planning.blocks",
        "fewest moves 1, more 0.5",
        "Each word is a tower of blocks, its first letter on the table. Turn the first towers into the others, "
        "moving one "
        "free block at a time: A>B puts A onto B, A>table puts A onto the table. Give the fewest moves, with blanks "
        "between them, on a line that begins with the word answer and a colon.",
        tuple(
            f"{count} blocks, {fewest} to {most} moves" if most > fewest else f"{count} blocks, {most} move"
            for count, fewest, most in _LEVELS
        ),
        generate,
        grade,
        solve,
        ("answer: A>table", "answer: B>table", "answer: A>B", "answer: B>A"),
    ),
)
