"""Scores plans: 1 for a best plan, 0.5 for another valid one, 0 for anything else.

An exact solver finds the best cost when the problem is made, and it is stored in the problem's data; grading follows
the plan step by step and compares costs. The breakdown has `valid`, `optimal`, `progress` (the share of the plan's
steps that were legal, or of the goal that was reached), `cost` and `best`.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from puna.tasks.contract import Verdict, refused

State = TypeVar("State", bound=Hashable)

VALID = 0.5
"""The score of a valid plan that is not a best one."""
MAX_STEPS = 500
"""The longest plan, in steps; a longer one is refused."""


def verdict(cost: int, best: int) -> Verdict:
    """Return the score of a valid plan."""
    parts = {"valid": 1.0, "optimal": float(cost <= best), "progress": 1.0, "cost": float(cost), "best": float(best)}
    if cost <= best:
        return Verdict(1.0, parts, "The plan is valid and the best there is.")
    return Verdict(VALID, parts, f"The plan is valid but costs {cost}; the best costs {best}.")


def invalid(reason: str, progress: float = 0.0) -> Verdict:
    """Return the score of a plan that does not work, however far it got."""
    return refused(reason, valid=0.0, optimal=0.0, progress=progress)


def search(start: State, neighbours: Callable[[State], Iterable[State]]) -> dict[State, State | None]:
    """Breadth-first search: return the state before each state that can be reached, in order of distance."""
    before: dict[State, State | None] = {start: None}
    queue = deque([start])
    while queue:
        state = queue.popleft()
        for other in neighbours(state):
            if other not in before:
                before[other] = state
                queue.append(other)
    return before


def shortest(start: State, goal: State, neighbours: Callable[[State], Iterable[State]]) -> list[State]:
    """Return a shortest path from start to goal, searched from both ends; every step must be reversible.

    Raises ValueError if there is none.
    """
    sides: list[dict[State, State | None]] = [{start: None}, {goal: None}]
    edges = [[start], [goal]]
    while start != goal and edges[0] and edges[1]:
        # One whole layer at a time, of the smaller side: the first layer that meets the other side does so at the
        # least distance.
        side = 0 if len(edges[0]) <= len(edges[1]) else 1
        layer: list[State] = []
        for state in edges[side]:
            for other in neighbours(state):
                if other in sides[side]:
                    continue
                sides[side][other] = state
                if other in sides[1 - side]:
                    return path(sides[0], other)[:-1] + path(sides[1], other)[::-1]
                layer.append(other)
        edges[side] = layer
    if start == goal:
        return [start]
    raise ValueError("there is no way")


def path(before: dict[State, State | None], goal: State) -> list[State]:
    """Return the states from the start of a search to `goal`."""
    states = [goal]
    while (previous := before[states[-1]]) is not None:
        states.append(previous)
    return states[::-1]


def distances(before: dict[State, State | None]) -> dict[State, int]:
    """Return the steps from the start to each state that a search reached."""
    result: dict[State, int] = {}
    for state, previous in before.items():
        result[state] = 0 if previous is None else result[previous] + 1
    return result
