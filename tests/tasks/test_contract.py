"""What every task promises, whatever family it belongs to."""

import hashlib
import json
import os
import subprocess
import sys
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.tasks.catalogue import TASKS, baseline, find
from puna.tasks.contract import MAX_ANSWER, Problem, Task, canonical
from puna.tasks.problems import pipelines, programs

EVERY = [(task, level) for task in TASKS.values() for level in range(1, len(task.levels) + 1)]
NAMES = [f"{task.name}-{level}" for task, level in EVERY]

# SHA-256 of the problems of seeds 0 to 9: whoever changes a generator changes what "level 3" means, and must say so.
GOLDEN: dict[str, str] = json.loads("""
{
  "arithmetic.addition-1": "29b05f405eb410ee",
  "arithmetic.addition-2": "69074298ee7cef35",
  "arithmetic.addition-3": "67e5eba85ca41c49",
  "arithmetic.addition-4": "2f2caacb03549e5a",
  "arithmetic.addition-5": "b6f1e32e60d3a104",
  "arithmetic.addition-6": "a0b1ae22a500e439",
  "arithmetic.subtraction-1": "596ba1c60a9a577c",
  "arithmetic.subtraction-2": "1b2c724f764c9b89",
  "arithmetic.subtraction-3": "116606aaa3120513",
  "arithmetic.subtraction-4": "fe1e9d7cb44b0f65",
  "arithmetic.subtraction-5": "53f790b28890223b",
  "arithmetic.subtraction-6": "df32ad8cc548309b",
  "arithmetic.multiplication-1": "deeb00889c9cda55",
  "arithmetic.multiplication-2": "9bcb7c216a7d2d64",
  "arithmetic.multiplication-3": "85c115908767a7cd",
  "arithmetic.multiplication-4": "a48de5c28d99a9a0",
  "arithmetic.multiplication-5": "71d5d09a1fd843fe",
  "arithmetic.multiplication-6": "43628696f5dc95e0",
  "arithmetic.chain-1": "a8097140db78611e",
  "arithmetic.chain-2": "312911b1fac6dc54",
  "arithmetic.chain-3": "d803626151e6eeb2",
  "arithmetic.chain-4": "40782713e8d641a9",
  "arithmetic.chain-5": "2b009f0467cb088f",
  "arithmetic.chain-6": "b6bc51dbedad49f8",
  "rewriting.string-1": "bffc373bbf758256",
  "rewriting.string-2": "7262206a1824563c",
  "rewriting.string-3": "12cd1be1f7d89afb",
  "rewriting.string-4": "0ac895709ea159a1",
  "rewriting.string-5": "109f11c4f66533e5",
  "rewriting.string-6": "21fd9857132c3a1c",
  "rewriting.list-1": "3a7575fd389bfc16",
  "rewriting.list-2": "afd78cf7684caec8",
  "rewriting.list-3": "3511304f3077858a",
  "rewriting.list-4": "5fdb137fb6d98e19",
  "rewriting.list-5": "d2b370768f5db3fb",
  "rewriting.list-6": "e3c8e9f4384bf845",
  "code.tracing-1": "378321d57bdae107",
  "code.tracing-2": "c76e0fd6a4582c10",
  "code.tracing-3": "8aea861a0679717b",
  "code.tracing-4": "f79d149b98202c45",
  "code.tracing-5": "1c81a85bb60a288c",
  "code.tracing-6": "d97a8888f966df81",
  "code.tracing-7": "fd5099fe99934b60",
  "code.synthesis-1": "91c647c40c97ec8b",
  "code.synthesis-2": "3b3b868ddb87557e",
  "code.synthesis-3": "c53b5e31b981c605",
  "code.synthesis-4": "afed8b0733ee7a9b",
  "code.synthesis-5": "64ad565997f46705",
  "code.synthesis-6": "5e984248eb4f3fae",
  "code.synthesis-7": "c65cfc6da226c630",
  "code.repair-1": "d3f85d9ebe2709f4",
  "code.repair-2": "0d98e3754710e3f4",
  "code.repair-3": "1e00dac8c8d6c003",
  "code.repair-4": "b435e0a21af24c95",
  "code.repair-5": "1e6ba4de800624c4",
  "code.repair-6": "f4e4d245cc9a0954",
  "planning.grid-1": "ac98681c1094a88c",
  "planning.grid-2": "316d7b362f3721d0",
  "planning.grid-3": "49e27a503c3ac8a3",
  "planning.grid-4": "5e49e402b2495546",
  "planning.grid-5": "43175173029b0e85",
  "planning.grid-6": "23d8f91e31d60777",
  "planning.grid-7": "aadee124abb989db",
  "planning.route-1": "33f7a5ca0334a5aa",
  "planning.route-2": "f4760cdab8126d42",
  "planning.route-3": "400079f6b34eb83d",
  "planning.route-4": "f2876456bf59c467",
  "planning.route-5": "9cd1bcd2372ddb5a",
  "planning.route-6": "aaa3d4585a2c5284",
  "planning.route-7": "c88673d9f666f42c",
  "planning.blocks-1": "39449275cb224fb9",
  "planning.blocks-2": "2dda569252a352d1",
  "planning.blocks-3": "2a51359956b4fd64",
  "planning.blocks-4": "e31daf5e232c78e8",
  "planning.blocks-5": "58b617e5bdd3cac7",
  "planning.blocks-6": "1819a24b9b942983",
  "planning.hanoi-1": "522ab0c51226ca86",
  "planning.hanoi-2": "df15d9079694b202",
  "planning.hanoi-3": "ffc8aed6862e2f52",
  "planning.hanoi-4": "2cb9afa0930c3a56",
  "planning.hanoi-5": "3e6aee9dd7b6f7bf",
  "planning.hanoi-6": "66d0c929f7265cd9",
  "planning.hanoi-7": "355897d8b910a783",
  "planning.schedule-1": "a1ce048064066aaa",
  "planning.schedule-2": "c1fe8ee0a860a513",
  "planning.schedule-3": "7c338dc4b1293948",
  "planning.schedule-4": "bd87a12a5032e11f",
  "planning.schedule-5": "f22d9f139776f346",
  "planning.schedule-6": "b359f5e0741837b9",
  "planning.schedule-7": "99dd9b81b989eaf9",
  "tools.calculator-1": "643d18f6b47842cb",
  "tools.calculator-2": "7e993b988a0523cf",
  "tools.calculator-3": "ab9d1421f0ef56f2",
  "tools.calculator-4": "73700589e47fc3ce",
  "tools.calculator-5": "9161585141ba7ea5",
  "tools.python-1": "b31ad8d6d32f7abf",
  "tools.python-2": "728a04e5aa0149aa",
  "tools.python-3": "f67c38f815768480",
  "tools.python-4": "0670da91dc35d7b2",
  "tools.python-5": "e57ec3c4a5a461cb"
}
""")


def our_evaluate(stages, _source, _function, inputs):
    """Evaluates one of our own programs by its stages; everything else fails."""
    return [programs.ProgramOutcome(pipelines.apply(stages, value)) for (value,) in inputs]


def never_run(_source, _function, inputs):
    """Stands for a sandbox in which every program fails."""
    return [programs.ProgramOutcome(error="NameError")] * len(inputs)


def check(task: Task, problem: Problem, answer, stages=None):
    if not task.code:
        return task.check(problem, answer)
    evaluate = never_run if stages is None else partial(our_evaluate, stages)
    return task.check(problem, answer, partial(programs.grade, evaluate=evaluate))


def digest(task: Task, level: int) -> str:
    whole = "\n".join(canonical(task.sample(seed, level)) for seed in range(10))
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


@pytest.mark.parametrize(("task", "level"), EVERY, ids=NAMES)
def test_problems_are_what_they_always_were(task: Task, level: int) -> None:
    assert digest(task, level) == GOLDEN[f"{task.name}-{level}"]


def test_problems_do_not_depend_on_the_process() -> None:
    code = (
        "import hashlib\nfrom puna.tasks.catalogue import TASKS\nfrom puna.tasks.contract import canonical\n"
        "for task in TASKS.values():\n    for level in range(1, len(task.levels) + 1):\n"
        "        problems = [task.sample(seed, level) for seed in range(10)]\n"
        "        whole = '\\n'.join(map(canonical, problems))\n"
        "        answers = '\\n'.join(map(task.solution, problems))\n"
        "        print(hashlib.sha256((whole + answers).encode()).hexdigest())\n"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "4242")
    }
    assert len(seen) == 1
    assert len(seen.pop().splitlines()) == len(EVERY)


@pytest.mark.parametrize(("task", "level"), EVERY, ids=NAMES)
def test_the_reference_scores_one_and_survives_json(task: Task, level: int) -> None:
    for seed in range(12):
        problem = task.sample(seed, level)
        again = Problem(**json.loads(json.dumps(problem.plain())))
        assert again == problem
        verdict = check(task, again, task.solution(problem), problem.data.get("stages"))
        assert verdict.passed, (problem, verdict)
        # Reasoning before it, and a boxed copy beside it, change nothing.
        if not task.code:
            answer = task.solution(problem).split("answer: ")[1]
            assert check(task, problem, f"<think>answer: 7 or 8</think>\n**Answer:** {answer}").score == 1
            assert check(task, problem, f"So \\boxed{{{answer}}}").score == 1
            assert check(task, problem, f"```\n{answer}\n```").score == 1


@pytest.mark.parametrize(("task", "level"), EVERY, ids=NAMES)
def test_what_is_no_answer_scores_nothing(task: Task, level: int) -> None:
    problem, other = task.sample(0, level), task.sample(1, level)
    solution = task.solution(problem)
    for answer in (
        "",
        problem.prompt,
        f"{task.instruction}\n{problem.prompt}",
        f"{problem.prompt}\nanswer: {problem.prompt}",
        json.dumps(problem.plain())[:9000],
        "answer:",
        "answer: ?",
        solution + "\nanswer: 1234567",
        "answer: 1234567\n" + solution if not task.code else f"```\ndef f(x): return 0\n```\n{solution}",
        solution + "\n" + task.solution(other).replace("\n", " \n") + " or so",
        "<think>" + solution,
        solution.replace("answer", "result") if not task.code else solution.strip("`"),
        None,
        7,
        solution.encode(),
        solution + " " * MAX_ANSWER,
    ):
        if (
            task.code
            and isinstance(answer, str)
            and answer.startswith(solution)
            and "```" not in answer[len(solution) :]
        ):
            continue  # a program's answer is its fence; what follows it is talk
        verdict = check(task, problem, answer)
        assert verdict.score == 0, answer
        assert verdict.reason


@pytest.mark.parametrize(("task", "level"), EVERY, ids=NAMES)
def test_constant_answers_earn_little(task: Task, level: int) -> None:
    # One digit results leave little room; from the second level on a constant is worth next to nothing.
    best = baseline(task.name, level, 40)
    assert best.score <= (0.3 if level == 1 else 0.25), best


WILD = st.one_of(
    st.text(max_size=300),
    st.text(alphabet="answer: 0123456789[]{}()-+*=\n\\boxed`<>|,ABCUDLRtablefx", max_size=300),
    st.builds("answer: {}".format, st.text(max_size=60)),
    st.builds("\\boxed{{{}}}".format, st.text(alphabet="{}\\0123456789 AB", max_size=60)),
    st.builds("```python\n{}\n```".format, st.text(max_size=100)),
    st.builds("<tool_call>{}</tool_call>".format, st.text(alphabet='{}":[]namerguts,1', max_size=60)),
)


@settings(max_examples=60)
@given(answer=WILD)
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_no_text_breaks_a_check(task: Task, answer: str) -> None:
    for level in (1, len(task.levels)):
        verdict = check(task, task.sample(3, level), answer)
        assert 0 <= verdict.score <= 1
        assert all(isinstance(part, float) for part in verdict.breakdown.values())
        json.dumps(verdict.breakdown, allow_nan=False)


HOSTILE = [
    "9**9**9**9",
    "answer: 9**9**9**9",
    "answer: " + "9" * 100_000,
    "answer: 1e999",
    "answer: NaN",
    "answer: ٣٤",
    "answer: 4²",
    "answer: １２",
    "answer: __import__('os').system('true')",
    "answer: " + "[" * 50_000,
    "\\boxed{" * 20_000,
    "\\boxed{" + "{" * 9_000 + "}" * 9_000 + "}",
    "answer: 1\n" * 20_000,
    "= " * 90_000,
    "1+" * 60_000 + "1=2",
    "1" * 150_000 + "=1",
    "answer" * 30_000,
    "*" * 150_000 + "answer: 4",
    "<tool_call>" * 18_000,
    "```\n" * 40_000,
    "a" * 10_000_000,
    "\x00\ud800\udfff",
    "answer: \ud800",
]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_hostile_texts_score_nothing(task: Task) -> None:
    problem = task.sample(0, 2)
    for answer in HOSTILE:
        assert check(task, problem, answer).score == 0, answer[:40]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_damaged_problem_scores_nothing_and_says_so(task: Task) -> None:
    problem = task.sample(0, 1)
    empty = Problem(problem.task, problem.level, problem.seed, problem.prompt, {})
    verdict = check(task, empty, task.solution(problem))
    assert verdict.score == 0
    assert "damaged" in verdict.reason


def test_levels_and_seeds_that_there_are_not() -> None:
    for level in (0, 99, True, "1", None, 1.0):
        with pytest.raises(PunaError, match="has no level"):
            find("planning.grid").sample(0, level)  # type: ignore[arg-type]
    for seed in (-1, 2**63, "0", None, 0.0):
        with pytest.raises(PunaError, match="not a seed"):
            find("planning.grid").sample(seed, 1)  # type: ignore[arg-type]
    with pytest.raises(PunaError, match=r"Did you mean 'planning\.grid'"):
        find("planing.grid")


def test_each_family_has_five_levels_and_different_problems() -> None:
    for task, level in EVERY:
        assert len(task.levels) >= 5
        prompts = {task.sample(seed, level).prompt for seed in range(20)}
        assert len(prompts) >= 10, (task.name, level)


def test_a_failing_sandbox_is_not_the_answers_fault() -> None:
    def absent(_source, _function, _inputs):
        raise PunaError("There is no sandbox.")

    task = find("code.synthesis")
    problem = task.sample(0, 1)
    with pytest.raises(PunaError, match="no sandbox"):
        task.check(problem, task.solution(problem), partial(programs.grade, evaluate=absent))
