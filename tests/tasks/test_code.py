"""Programs: our interpreter against Python's, the sandbox, and answers that would cheat."""

from functools import partial

import pytest

from puna.core.errors import PunaError
from puna.tasks.catalogue import find
from puna.tasks.problems import pipelines, programs, tracing

CHEATS = {
    "memorised": None,  # made from the visible examples
    "exit": "import sys\nsys.exit(0)",
    "leave": "import os\ndef f(x): os._exit(0)",
    "true": "def f(x): return True",
    "equal to all": "class A(int):\n    def __eq__(self, other): return True\ndef f(x): return A()",
    "list equal to all": "class A(list):\n    def __eq__(self, other): return True\ndef f(x): return A()",
    "endless": "def f(x):\n    while True: pass",
    "no function": "g = 1",
    "no python": "def f(x:",
    "frames": "import sys\ndef f(x): return sys._getframe(1).f_locals",
}


@pytest.fixture(scope="module")
def sandbox():
    """Skips where no sandbox reaches the floor that tasks ask for."""
    try:
        outcome = programs.in_sandbox("def f(x): return x + 1", "f", [[1]])
    except (ImportError, PunaError) as error:
        pytest.skip(f"needs a sandbox: {error}")
    assert outcome[0].value == 2
    return programs.in_sandbox


def run_ours(source: str, function: str, inputs):
    """Runs sources that the test itself got from our generators, in this process."""
    names: dict = {}
    exec(source, names)
    return [programs.ProgramOutcome(names[function](*arguments)) for arguments in inputs]


@pytest.mark.parametrize("name", ["code.synthesis", "code.repair"])
def test_what_is_written_means_what_is_computed(name: str) -> None:
    task = find(name)
    grade = partial(programs.grade, evaluate=run_ours)
    for level in range(1, len(task.levels) + 1):
        for seed in range(15):
            problem = task.sample(seed, level)
            assert task.check(problem, task.solution(problem), grade).score == 1
            if name == "code.repair":
                broken = f"```\n{pipelines.write(problem.data['broken'])}\n```"
                verdict = task.check(problem, broken, grade)
                assert verdict.score == 0
                assert verdict.breakdown["hidden"] <= 2 / 3 + 1e-9


def test_traced_programs_print_what_python_prints(capsys) -> None:
    task = find("code.tracing")
    for level in range(1, len(task.levels) + 1):
        for seed in range(25):
            problem = task.sample(seed, level)
            exec(problem.prompt, {})  # our own generator's source
            assert capsys.readouterr().out.strip() == str(problem.data["answer"])


def test_endless_programs_are_abandoned() -> None:
    with pytest.raises(tracing.Abandoned):
        tracing.Interpreter().run(
            [["let", "a", 1], ["while", [">", "a", 0], [["let", "a", ["+", "a", 0]]]], ["print", "a"]]
        )


def test_types_are_told_apart() -> None:
    assert programs.strictly_equal([1, [2]], [1, [2]])
    for given, expected in ((True, 1), (1.0, 1), ((1,), [1]), ([True], [1]), (None, 0), ("1", 1), ([1, 2], [1])):
        assert not programs.strictly_equal(given, expected)


def test_visible_examples_alone_earn_nothing() -> None:
    problem = find("code.synthesis").sample(0, 4)
    shown = [right for _, right in problem.data["visible"]]

    def evaluate(_source, _function, inputs):
        return [programs.ProgramOutcome(value) for value in [*shown, *["no"] * (len(inputs) - len(shown))]]

    verdict = programs.grade(problem.data, "def f(xs): ...", evaluate)
    assert (verdict.score, verdict.breakdown["visible"], verdict.breakdown["hidden"]) == (0, 1, 0)


def test_a_sandbox_that_answers_less_is_a_zero() -> None:
    problem = find("code.synthesis").sample(0, 1)
    assert programs.grade(problem.data, "def f(x): ...", lambda *_: []).score == 0


@pytest.mark.parametrize("cheat", CHEATS)
def test_cheats_earn_nothing_in_the_sandbox(sandbox, cheat: str) -> None:
    task = find("code.synthesis")
    problem = task.sample(1, 4)
    shown = {str(given): right for given, right in problem.data["visible"]}
    source = CHEATS[cheat] or f"def f(x): return {shown}.get(str(x), 0)"
    verdict = task.check(problem, f"```python\n{source}\n```")
    assert verdict.score == 0
    if cheat == "memorised":
        assert verdict.breakdown["visible"] == 1
        assert verdict.breakdown["hidden"] < 1


@pytest.mark.parametrize("name", ["code.synthesis", "code.repair"])
def test_references_pass_in_the_sandbox(sandbox, name: str) -> None:
    task = find(name)
    for level in (1, len(task.levels)):
        problem = task.sample(2, level)
        assert task.check(problem, task.solution(problem)).passed
        assert not task.check(problem, problem.prompt).passed
