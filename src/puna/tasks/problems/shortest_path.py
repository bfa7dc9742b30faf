"""Shortest paths: the cheapest route between two towns over roads with lengths, found by Dijkstra's algorithm."""

import heapq
import itertools

from puna.tasks import answer_parser
from puna.tasks.contract import Data, Draw, Task, Verdict, refused
from puna.tasks.problems import plan_scoring

Roads = dict[str, dict[str, int]]

_NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# (towns, roads beyond a spanning tree, longest road) of each level
_LEVELS = ((3, 1, 9), (4, 2, 9), (5, 3, 9), (6, 5, 20), (8, 7, 50), (11, 10, 99), (15, 16, 99))


def generate(draw: Draw, level: int) -> tuple[str, Data]:
    """A connected graph with random letters, and two towns whose cheapest route has two roads or more."""
    count, extra, longest = _LEVELS[level - 1]
    while True:
        towns = draw.sample(_NAMES, count)
        pairs = [(towns[draw.randrange(place)], towns[place]) for place in range(1, count)]
        others = [
            (one, other)
            for place, one in enumerate(towns)
            for other in towns[place + 1 :]
            if (one, other) not in pairs and (other, one) not in pairs
        ]
        pairs += draw.sample(others, min(extra, len(others)))
        draw.shuffle(pairs)
        edges = [[one, other, draw.randint(1, longest)] for one, other in pairs]
        start, goal = draw.sample(towns, 2)
        way, best = cheapest(_roads(edges), start, goal)
        if len(way) > 2:
            break
    prompt = ", ".join(f"{one}-{other} {length}" for one, other, length in edges) + f"; {start} to {goal}"
    return prompt, {"edges": edges, "start": start, "goal": goal, "best": best}


def _roads(edges: list[list]) -> Roads:
    roads: Roads = {}
    for one, other, length in edges:
        roads.setdefault(one, {})[other] = length
        roads.setdefault(other, {})[one] = length
    return roads


def cheapest(roads: Roads, start: str, goal: str) -> tuple[list[str], int]:
    """Return the cheapest route and its length; of equal ones the first in alphabetical order."""
    queue: list[tuple[int, list[str]]] = [(0, [start])]
    done: set[str] = set()
    while queue:
        length, way = heapq.heappop(queue)
        if way[-1] == goal:
            return way, length
        if way[-1] in done:
            continue
        done.add(way[-1])
        for town, road in roads[way[-1]].items():
            if town not in done:
                heapq.heappush(queue, (length + road, [*way, town]))
    raise ValueError(f"no way from {start} to {goal}")


def grade(data: Data, text: str) -> Verdict:
    """Follow the towns; each step must be a road, and the route must lead from the start to the goal."""
    found = answer_parser.value(text)
    if found.text is None:
        return refused(found.reason)
    way = answer_parser.words(found.text, most=plan_scoring.MAX_STEPS)
    roads = _roads(data["edges"])
    if way is None or any(town not in roads for town in way):
        return plan_scoring.invalid("The answer is not a row of towns of this map.")
    if way[0] != data["start"] or way[-1] != data["goal"]:
        return plan_scoring.invalid("The way does not lead from the start to the goal.")
    cost = 0
    for done, (here, there) in enumerate(itertools.pairwise(way)):
        if there not in roads[here]:
            return plan_scoring.invalid(f"There is no road from {here} to {there}.", done / (len(way) - 1))
        cost += roads[here][there]
    return plan_scoring.verdict(cost, data["best"])


def solve(data: Data) -> str:
    """Write a cheapest route."""
    return "answer: " + " ".join(cheapest(_roads(data["edges"]), data["start"], data["goal"])[0])


TASKS = (
    Task(
        "planning.route",
        "cheapest way 1, a dearer one 0.5",
        "Roads between towns have lengths and go both ways. Give the towns of the shortest way, both ends included, "
        "with "
        "blanks between them, on a line that begins with the word answer and a colon.",
        tuple(f"{count} towns, {count - 1 + extra} roads at most" for count, extra, _ in _LEVELS),
        generate,
        grade,
        solve,
        ("answer: A B C", "answer: A C B", "answer: B A C", "answer: X Y Z"),
    ),
)
