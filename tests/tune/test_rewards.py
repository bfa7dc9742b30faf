"""Rewards: each answer has its own, independent of the others."""

import math

import pytest

from puna.core.errors import PunaError
from puna.tasks.catalogue import find
from puna.tasks.contract import Verdict
from puna.tune.rl.recipe import RewardConfig
from puna.tune.rl.rewards import Grading, Rewarded, checker, hack_measure
from puna.tune.rl.rewards import reward as reward_by
from puna.tune.rl.sampling import Sample
from puna.tune.rows.packing import Answer

GRID = find("planning.grid")


def _sample(text, number=1, length=3, verdict=None):
    return Sample(GRID.sample(number, 1), text, Answer([1] * length, [1] * length, [0.0] * length, True), [], verdict)


def reward(samples, config, *, max_tokens, check=None) -> Rewarded:
    with Grading(check or checker(config.sandbox)) as grading:
        return reward_by(samples, config, grading, max_tokens=max_tokens)


def test_a_check_that_raises_shifts_no_other_reward():
    def check(task, problem, text):
        if text == "bad":
            raise ValueError("oh")
        return Verdict(float(text), {}, "")

    texts = ["0.1", "bad", "0.3", "bad", "0.5"]
    done = reward(
        [_sample(text, number) for number, text in enumerate(texts)], RewardConfig(), max_tokens=9, check=check
    )
    assert [r if r == r else None for r in done.rewards] == [0.1, None, 0.3, None, 0.5]
    assert [verdict is None for verdict in done.verdicts] == [False, True, False, True, False]
    assert len(done.broken) == 2
    assert "ValueError: oh" in done.broken[0]
    assert "planning.grid" in done.broken[0]


def test_the_same_answer_is_checked_once_and_another_problem_apart():
    seen = []

    def check(task, problem, text):
        seen.append((problem.seed, text))
        return Verdict(problem.seed / 10, {}, "")

    samples = [_sample("a", 1), _sample("a", 1), _sample("a", 2)]
    assert reward(samples, RewardConfig(), max_tokens=9, check=check).rewards == [0.1, 0.1, 0.2]
    assert sorted(seen) == [(1, "a"), (2, "a")]


def test_programs_are_checked_while_others_are_written_and_nothing_else_is():
    seen = []

    def check(task, problem, text):
        seen.append(task.name)
        return Verdict(1.0, {}, "")

    code = find("code.synthesis")
    program = Sample(code.sample(1, 1), "x", Answer([1], [1], [0.0], True))
    with Grading(check) as grading:
        grading.begin(_sample("a"))
        grading.begin(program)
        assert grading.verdict(program).result().score == 1.0
        assert seen == ["code.synthesis"]
        assert reward_by([_sample("a"), program], RewardConfig(), grading, max_tokens=9).rewards == [1.0, 1.0]
    assert seen == ["code.synthesis", "planning.grid"]


def test_parts_and_length_count_as_the_recipe_says():
    def check(task, problem, text):
        return Verdict(0.5, {"correct": 1.0, "extra": 0.5}, "")

    config = RewardConfig(parts={"extra": 0.2, "absent": 1.0}, overlong="penalty", overlong_cache=4)
    samples = [_sample("a", length=length) for length in (5, 8, 10)]
    found = reward(samples, config, max_tokens=10, check=check).rewards
    assert found == pytest.approx([0.6, 0.1, -0.4])


def test_an_episodes_verdict_is_not_asked_again():
    done = reward([_sample("x", verdict=Verdict(1.0, {}, ""))], RewardConfig(), max_tokens=9, check=None)
    assert done.rewards == [1.0]


def test_without_isolation_nothing_is_rewarded(monkeypatch):
    def refuse(*_, floor, **__):
        raise PunaError(f"below the floor '{floor}'")

    monkeypatch.setattr("puna.tasks.problems.programs.in_sandbox", refuse)
    code = find("code.synthesis")
    problem = code.sample(1, 1)
    sample = Sample(problem, code.solution(problem), Answer([1], [1], [0.0], True))
    with pytest.raises(PunaError, match="below the floor 'isolated'"):
        reward([sample], RewardConfig(sandbox="isolated"), max_tokens=9)


def test_a_right_program_is_worth_its_verdict():
    code = find("code.synthesis")
    problem = code.sample(1, 1)
    right = code.solution(problem)
    table = dict(problem.data["visible"])
    memorised = f"```python\ndef f(x):\n    return {table}.get(x)\n```"
    samples = [Sample(problem, text, Answer([1], [1], [0.0], True)) for text in (right, memorised, "no program")]
    done = reward(samples, RewardConfig(), max_tokens=9)
    assert done.rewards == [1.0, 0.0, 0.0]
    measure = hack_measure(done.verdicts)
    assert measure == {"visible": 1.0, "hidden": 0.5}
    assert hack_measure([Verdict(1.0, {"correct": 1.0}, "")]) == {}


def test_checks_of_tasks_without_programs_need_no_sandbox():
    problem = GRID.sample(1, 1)
    assert checker("isolated")(GRID, problem, GRID.solution(problem)).passed
    assert math.isclose(checker("isolated")(GRID, problem, "answer: no").score, 0)
