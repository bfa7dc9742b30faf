"""reasoning-gym's problems under our checks."""

import pytest

from puna.core.errors import PunaError
from puna.tasks.catalogue import find
from puna.tasks.contract import Problem
from puna.tasks.problems import reasoning_gym


def test_refused_generators_say_why() -> None:
    for name in reasoning_gym.REFUSED:
        with pytest.raises(PunaError, match="is not allowed"):
            find(f"gym.{name}")
    with pytest.raises(PunaError, match=r"Did you mean 'gym\.chain_sum'"):
        find("gym.chain_sums")


def test_answers_are_compared_and_never_run() -> None:
    for name, right in (("gym.lcm", "12"), ("gym.spell_backward", "cba")):
        data = {"answer": right, "whole": name == "gym.lcm"}
        task, problem = find(name), Problem(name, 1, 0, "", data)
        assert task.check(problem, f"answer: {right}").score == 1
        for answer in (right, f"answer: {right} or 5", "answer: 9**9**9**9", "answer: 12.0", "answer: 6+6", ""):
            assert task.check(problem, answer).score == 0


@pytest.mark.parametrize("name", reasoning_gym._ALLOWED)
def test_problems_of_the_package(name: str) -> None:
    pytest.importorskip("reasoning_gym", reason="needs the reasoning-gym package")
    task = find(f"gym.{name}")
    for level in range(1, 6):
        for seed in range(5):
            problem = task.sample(seed, level)
            assert problem == task.sample(seed, level)
            assert task.check(problem, task.solution(problem)).passed
            assert task.check(problem, problem.prompt).score == 0


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    reasoning_gym._dataset.cache_clear()
    with pytest.raises(PunaError, match=r"puna\[reasoning-gym\]"):
        find("gym.lcm").sample(0, 1)
