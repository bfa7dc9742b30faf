"""The curriculum keeps the pass rate between its bounds and goes on where it was."""

import json
import random

import pytest

from puna.core.errors import PunaError
from puna.tasks.catalogue import find
from puna.tasks.curriculum import Curriculum

TASK = find("arithmetic.addition")


def learn(curriculum: Curriculum, skill: float, draws: int) -> list[bool]:
    """A pretended learner that solves levels below its skill nearly always and those above nearly never."""
    source = random.Random(1)
    solved = []
    for _ in range(draws):
        drawn = curriculum.draw()
        solved.append(source.random() < min(0.98, max(0.02, 0.5 + 0.45 * (skill - drawn.level))))
        curriculum.record(drawn.level, float(solved[-1]))
    return solved


def test_the_position_finds_the_edge_of_what_is_learned() -> None:
    for skill in (1.5, 3.0, 5.0):
        curriculum = Curriculum(TASK, window=32)
        learn(curriculum, skill, 1500)
        recent = learn(curriculum, skill, 800)
        assert abs(curriculum.position - skill) <= 1
        assert 0.2 < sum(recent) / len(recent) < 0.9


def test_it_stays_within_the_levels() -> None:
    curriculum = Curriculum(TASK, window=8)
    for _ in range(400):
        curriculum.record(curriculum.draw().level, 1.0)
    assert curriculum.position == len(TASK.levels)
    assert {curriculum.draw().level for _ in range(300)} == set(range(1, len(TASK.levels) + 1))
    for _ in range(2000):
        curriculum.record(curriculum.draw().level, 0.0)
    assert curriculum.position == 1
    assert {curriculum.draw().level for _ in range(50)} == {1}


def test_shares_add_to_one() -> None:
    for position in (1, 1.5, 2, 3.25, 6):
        curriculum = Curriculum(TASK)
        curriculum.position = position
        assert sum(curriculum.distribution()) == pytest.approx(1)
        assert min(curriculum.distribution()) >= 0


def test_a_state_in_json_goes_on_as_if_nothing_had_happened() -> None:
    whole = Curriculum(TASK, window=16, seed=3)
    learn(whole, 3.0, 100)
    state = json.loads(json.dumps(whole.state()))
    other = Curriculum(TASK, window=16, seed=3)
    other.restore(state)
    assert learn(whole, 3.0, 200) == learn(other, 3.0, 200)
    assert whole.state() == other.state()
    assert whole.sample() == other.sample()


def test_problems_differ_and_depend_on_the_seed() -> None:
    one, other = Curriculum(TASK, seed=1), Curriculum(TASK, seed=2)
    assert len({one.draw().seed for _ in range(50)}) == 50
    assert one.sample() != other.sample()


@pytest.mark.parametrize(
    "options", [{"low": 0.9}, {"low": 0}, {"high": 1}, {"window": 0}, {"step": 0}, {"review": 1}, {"first": 9}]
)
def test_bounds_that_are_none(options: dict) -> None:
    with pytest.raises(PunaError):
        Curriculum(TASK, **options)


@pytest.mark.parametrize(
    "damage",
    [{"task": "x"}, {"position": 99}, {"counts": []}, {"seen": -1}, {"drawn": "a"}, {"counts": [[0]]}, {"passed": 5}],
)
def test_a_damaged_state_is_refused(damage: dict) -> None:
    curriculum = Curriculum(TASK)
    with pytest.raises(PunaError, match="not the state"):
        curriculum.restore({**curriculum.state(), **damage})
    with pytest.raises(PunaError):
        curriculum.restore({})
