"""Measuring on held-out problems: never trained on, independent of order and batch, with standard estimators."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.core.statistics import clustered, wilson
from puna.engine.generate import load_engine
from puna.tasks.catalogue import TASKS, find
from puna.tasks.contract import Problem, Task, Verdict
from puna.tasks.heldout import heldout_problems, is_heldout, training_problem
from puna.tune.measure import measure_tasks, pass_at_k

ASKED = [("arithmetic.addition", 1), ("planning.grid", 1)]


@pytest.mark.parametrize("name", TASKS)
def test_training_and_heldout_problems_never_meet(name: str) -> None:
    task = find(name)
    measured = {problem.prompt for problem in heldout_problems(name, 1, 30)}
    trained = {training_problem(task, 1, number).prompt for number in range(60)}
    assert measured
    assert not measured & trained
    assert heldout_problems(name, 1, 30) == heldout_problems(name, 1, 30)


def test_heldout_problems_are_all_different_and_a_larger_set_begins_with_the_smaller() -> None:
    small, large = heldout_problems("planning.grid", 2, 20), heldout_problems("planning.grid", 2, 50)
    assert large[:20] == small
    assert len({problem.prompt for problem in large}) == 50
    assert heldout_problems("planning.grid", 2, 20, seed=1) != small


def test_about_a_quarter_is_held_out() -> None:
    task = find("rewriting.string")
    share = sum(is_heldout(task.sample(seed, 3)) for seed in range(2000)) / 2000
    assert 0.21 < share < 0.29


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(case: tuple[int, int, int]) -> None:
    samples, right, k = case
    subsets = list(itertools.combinations([True] * right + [False] * (samples - right), k))
    assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@given(st.lists(st.integers(0, 1), min_size=1, max_size=60))
def test_one_try_a_problem_is_wilsons_interval(rights: list[int]) -> None:
    low, high = clustered([float(right) for right in rights])
    expected = wilson(sum(rights), len(rights))
    assert (low, high) == pytest.approx(expected, abs=0.02)


def test_tries_that_agree_count_as_one() -> None:
    agreeing = clustered([0.0] * 50 + [1.0] * 50)
    spread = clustered([0.5] * 99 + [0.375])
    assert agreeing[1] - agreeing[0] > 5 * (spread[1] - spread[0])


def test_numbers_do_not_depend_on_order_or_batch(model_dir: Path) -> None:
    def check(task: Task, problem: Problem, text: str) -> Verdict:
        return Verdict(float(sum(text.encode()) % 2), {}, "")

    options = {"problems": 6, "samples": 3, "k": 2, "max_tokens": 6, "check": check}
    one = measure_tasks(load_engine(model_dir, max_batch=2), ASKED, **options)  # type: ignore[arg-type]
    other = measure_tasks(load_engine(model_dir, max_batch=32), ASKED[::-1], **options)  # type: ignore[arg-type]
    assert one == other[::-1]
    assert [(m.task, m.level) for m in one] == ASKED
    for measured in one:
        assert measured.greedy is not None
        assert measured.greedy_interval == pytest.approx(wilson(round(measured.greedy * 6), 6))
        assert measured.pass_1 is not None
        assert measured.pass_k is not None
        assert 0 < measured.pass_1 <= measured.pass_k
        assert measured.tokens <= 6


def test_tools_are_worked_on_in_turns(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine(model_dir)
    calls: list[list[int]] = []
    generate = engine.generate

    def scripted(prompts, params):  # type: ignore[no-untyped-def]
        calls.append([len(prompt) for prompt in prompts])
        done = generate(prompts, params)
        text = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "1+1"}}\n</tool_call>'
        return [d.__class__(**{**d.__dict__, "text": text if len(calls) == 1 else "answer: 2"}) for d in done]

    monkeypatch.setattr(engine, "generate", scripted)
    monkeypatch.setattr("puna.tasks.tools.SCHEMAS", {"calculator": {"name": "calculator"}})
    (measured,) = measure_tasks(engine, [("tools.calculator", 1)], problems=2, samples=0, max_tokens=4)
    assert len(calls) == 2
    assert all(later > earlier for earlier, later in zip(*calls, strict=True))
    assert measured.greedy == 0.0


def test_what_cannot_be_measured_is_one_sentence(model_dir: Path) -> None:
    engine = load_engine(model_dir)
    with pytest.raises(PunaError, match=r"no task 'planning\.gird'"):
        measure_tasks(engine, [("planning.gird", 1)])
    with pytest.raises(PunaError, match="no level 99"):
        measure_tasks(engine, [("planning.grid", 99)])
    with pytest.raises(PunaError, match="pass@4 needs 4 samples"):
        measure_tasks(engine, [("planning.grid", 1)], samples=2, k=4)
