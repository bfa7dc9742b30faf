"""Planning: the solvers' best against brute force, and what each kind of wrong plan scores."""

import itertools

import pytest

from puna.tasks.catalogue import TASKS, find
from puna.tasks.contract import Problem
from puna.tasks.problems import blocks, grid, hanoi, schedules, shortest_path

PLANNING = [task for name, task in TASKS.items() if name.startswith("planning.")]


def least_by_trying(problem: Problem, steps: list[str], separator: str, longest: int) -> int | None:
    """The length of the shortest valid plan, found by trying every row of steps."""
    task = find(problem.task)
    for length in range(1, longest + 1):
        for plan in itertools.product(steps, repeat=length):
            if task.check(problem, "answer: " + separator.join(plan)).score > 0:
                return length
    return None


@pytest.mark.parametrize("seed", range(6))
def test_grid_is_best_by_brute_force(seed: int) -> None:
    problem = find("planning.grid").sample(seed, 2)
    best = problem.data["best"]
    if best <= 5:
        assert least_by_trying(problem, list("UDLR"), "", 5) == best


@pytest.mark.parametrize("seed", range(6))
def test_hanoi_is_best_by_brute_force(seed: int) -> None:
    problem = find("planning.hanoi").sample(seed, 3)
    best = problem.data["best"]
    if best <= 4:
        assert least_by_trying(problem, ["ab", "ac", "ba", "bc", "ca", "cb"], " ", 4) == best


@pytest.mark.parametrize("seed", range(6))
def test_blocks_are_best_by_brute_force(seed: int) -> None:
    problem = find("planning.blocks").sample(seed, 3)
    names = "".join(problem.data["start"])
    steps = [f"{one}>{other}" for one in names for other in [*names, "table"] if one != other]
    best = problem.data["best"]
    if best <= 3:
        assert least_by_trying(problem, steps, " ", 3) == best


def test_blocks_best_agrees_with_a_search_from_one_side() -> None:
    from puna.tasks.problems import plan_scoring

    for seed in range(15):
        data = find("planning.blocks").sample(seed, 4).data
        steps = plan_scoring.distances(
            plan_scoring.search(tuple(data["start"]), lambda state: [after for _, _, after in blocks.moves(state)])
        )
        assert steps[tuple(data["goal"])] == data["best"]


def test_hanoi_takes_its_known_number_of_moves() -> None:
    for disks in range(1, 7):
        data = {"start": [0] * disks, "goal": [2] * disks, "best": 2**disks - 1}
        plan = hanoi.solve(data)
        assert len(plan.split()) - 1 == 2**disks - 1
        assert hanoi.grade(data, plan).score == 1


@pytest.mark.parametrize("level", [2, 3, 4])
def test_routes_are_best_by_brute_force(level: int) -> None:
    for seed in range(10):
        data = find("planning.route").sample(seed, level).data
        roads = shortest_path._roads(data["edges"])
        between = [town for town in roads if town not in (data["start"], data["goal"])]
        lengths = []
        for count in range(len(between) + 1):
            for middle in itertools.permutations(between, count):
                way = [data["start"], *middle, data["goal"]]
                if all(there in roads[here] for here, there in itertools.pairwise(way)):
                    lengths.append(sum(roads[here][there] for here, there in itertools.pairwise(way)))
        assert min(lengths) == data["best"]


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_schedules_are_best_by_brute_force(level: int) -> None:
    for seed in range(8):
        problem = find("planning.schedule").sample(seed, level)
        costs = []
        for order in itertools.permutations(problem.data["lengths"]):
            verdict = schedules.grade(problem.data, "answer: " + " ".join(order))
            if verdict.score:
                costs.append(verdict.breakdown["cost"])
        assert min(costs) == problem.data["best"]


def test_a_longer_plan_is_worth_half() -> None:
    problem = find("planning.grid").sample(0, 3)
    plan = grid.solve(problem.data)
    first = plan.split()[1][0]
    back = {"U": "D", "D": "U", "L": "R", "R": "L"}[first]
    verdict = grid.grade(problem.data, plan.replace(" ", f" {first}{back}", 1))
    assert (verdict.score, verdict.breakdown["valid"], verdict.breakdown["optimal"]) == (0.5, 1, 0)

    problem = find("planning.hanoi").sample(0, 3)
    moves = hanoi.solve(problem.data).split()[1:]
    longer = [moves[0], moves[0][::-1], *moves]
    assert hanoi.grade(problem.data, "answer: " + " ".join(longer)).score == 0.5


@pytest.mark.parametrize("task", PLANNING, ids=[task.name for task in PLANNING])
def test_a_plan_without_its_end_or_with_a_wrong_step_is_worth_nothing(task) -> None:
    for seed in range(10):
        for level in (2, 4):
            problem = task.sample(seed, level)
            steps = task.solution(problem).removeprefix("answer: ")
            parts = list(steps) if task.name == "planning.grid" else steps.split()
            glue = "" if task.name == "planning.grid" else " "
            for wrong in (parts[:-1], parts[1:], [*parts, "?"], [*parts[:-1], "Q#"]):
                verdict = task.check(problem, "answer: " + glue.join(wrong))
                assert verdict.score == 0, (problem, wrong)
                assert 0 <= verdict.breakdown.get("progress", 0) <= 1


def test_plans_that_never_end_are_refused() -> None:
    problem = find("planning.grid").sample(0, 1)
    assert grid.grade(problem.data, "answer: " + "RL" * 2000).score == 0
    problem = find("planning.hanoi").sample(0, 1)
    assert hanoi.grade(problem.data, "answer: " + "ab ba " * 1000).score == 0
