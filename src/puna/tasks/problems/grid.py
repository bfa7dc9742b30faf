"""Grid paths: walk from S to G around walls. Breadth-first search finds the shortest."""

import itertools

from puna.tasks import answer_parser
from puna.tasks.contract import Data, Draw, Task, Verdict, refused
from puna.tasks.problems import plan_scoring

Cell = tuple[int, int]

MOVES = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
# (side, share of walls, fewest steps) of each level
_LEVELS = ((3, 0.1, 2), (4, 0.2, 2), (5, 0.25, 3), (6, 0.3, 4), (8, 0.3, 6), (10, 0.35, 8), (14, 0.35, 12))


def generate(draw: Draw, level: int) -> tuple[str, Data]:
    """A square map whose goal is at least as many steps from the start as the level says."""
    side, share, fewest = _LEVELS[level - 1]
    while True:
        walls = [[draw.random() < share for _ in range(side)] for _ in range(side)]
        free = [(row, column) for row in range(side) for column in range(side) if not walls[row][column]]
        if not free:
            continue
        start = draw.choice(free)
        steps = plan_scoring.distances(_search(walls, start))
        far = [cell for cell in free if steps.get(cell, 0) >= fewest]
        if far:
            goal = draw.choice(far)
            break
    rows = ["".join(_sign(walls, (row, column), start, goal) for column in range(side)) for row in range(side)]
    data: Data = {"rows": rows, "start": list(start), "goal": list(goal), "best": steps[goal]}
    return "\n".join(rows), data


def _sign(walls: list[list[bool]], cell: Cell, start: Cell, goal: Cell) -> str:
    return "S" if cell == start else "G" if cell == goal else "#" if walls[cell[0]][cell[1]] else "."


def _search(walls: list[list[bool]], start: Cell) -> dict[Cell, Cell | None]:
    def neighbours(cell: Cell) -> list[Cell]:
        near = [(cell[0] + down, cell[1] + right) for down, right in MOVES.values()]
        return [(row, column) for row, column in near if _inside(len(walls), row, column) and not walls[row][column]]

    return plan_scoring.search(start, neighbours)


def _inside(side: int, row: int, column: int) -> bool:
    return 0 <= row < side and 0 <= column < side


def grade(data: Data, text: str) -> Verdict:
    """Follow the moves; they must stay on free cells and end at the goal."""
    found = answer_parser.value(text)
    if found.text is None:
        return refused(found.reason)
    moves = "".join(found.text.replace(",", " ").split())
    if len(moves) > plan_scoring.MAX_STEPS or any(move not in MOVES for move in moves):
        return plan_scoring.invalid("The answer is not a row of moves U, D, L and R.")
    rows, (row, column) = data["rows"], data["start"]
    for done, move in enumerate(moves):
        row, column = row + MOVES[move][0], column + MOVES[move][1]
        if not _inside(len(rows), row, column) or rows[row][column] == "#":
            return plan_scoring.invalid(f"Move {done + 1} leads into a wall or off the map.", done / len(moves))
    if [row, column] != data["goal"]:
        return plan_scoring.invalid("The moves do not end at the goal.", 1.0)
    return plan_scoring.verdict(len(moves), data["best"])


def solve(data: Data) -> str:
    """Write a shortest sequence of moves."""
    walls = [[sign == "#" for sign in row] for row in data["rows"]]
    goal = (data["goal"][0], data["goal"][1])
    cells = plan_scoring.path(_search(walls, (data["start"][0], data["start"][1])), goal)
    steps = [(there[0] - here[0], there[1] - here[1]) for here, there in itertools.pairwise(cells)]
    names = {step: name for name, step in MOVES.items()}
    return "answer: " + "".join(names[step] for step in steps)


TASKS = (
    Task(
        "planning.grid",
        "shortest path 1, a longer one 0.5",
        "Walk from S to G; # is a wall. Give the shortest row of moves (U up, D down, L left, R right, such as "
        "UULD) on a "
        "line that begins with the word answer and a colon.",
        tuple(f"{side} by {side}, {fewest} steps or more" for side, _, fewest in _LEVELS),
        generate,
        grade,
        solve,
        tuple("answer: " + moves for moves in ("RD", "DR", "RR", "DD", "UL", "LU", "LL", "UU", "RRDD", "R", "D")),
    ),
)
