"""The reader of answers, the calculator and written working: attacks on each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.tasks import answer_parser, calculator
from puna.tasks.catalogue import find


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("answer: 42", "42"),
        ("Answer:42", "42"),
        ("**Final answer:** 42", "42"),
        ("the answer: `42`", "42"),
        ("It is\n> answer: $42$\nand that is all", "42"),
        ("so \\boxed{42}", "42"),
        ("so \\boxed{a{b}c}", "a{b}c"),
        ("```\n42\n```", "42"),
        ("answer: 42\nanswer: 42", "42"),
        ("\\boxed{42} answer\nanswer: 42", "42"),
        ("<think>answer: 1</think>answer: 42", "42"),
        ("answer: 42\nanswer: 43", None),
        ("answer: 43 \\boxed{42}\nanswer: 42", None),
        ("\\boxed{1}\\boxed{2}", None),
        ("```\n1\n```\n```\n2\n```", None),
        ("my answer: 42", None),
        ("answer 42", None),
        ("42", None),
        ("answer:", None),
        ("answer: 42\nanswer:", None),
        ("\\boxed{42", None),
        ("<think>answer: 42", None),
        ("<think></think>answer: 42<think>", None),
        ("", None),
    ],
)
def test_where_a_value_stands(text: str, found: str | None) -> None:
    result = answer_parser.value(text)
    assert result.text == found
    assert bool(result.reason) == (found is None)


def test_where_a_program_stands() -> None:
    source = "def f(x):\n    return x"
    assert answer_parser.program(f"```python\n{source}\n```").text == source
    assert answer_parser.program(f"Here:\n```\n{source}\n```\nDone.").text == source
    assert answer_parser.program(source + "\n").text == source
    assert answer_parser.program(f"```\n{source}\n```\n```\nprint(f(1))\n```").text is None
    assert answer_parser.program(f"```\n{source}").text is None
    assert answer_parser.program("return x").text is None


@pytest.mark.parametrize(
    "text", ["٤٢", "４２", "4²", "+4", "04", "-0", "4.0", "1,000", "1_000", "0x2a", "1e3", "", "-", "4 2", "9" * 42]
)
def test_what_is_no_whole_number(text: str) -> None:
    assert answer_parser.integer(text) is None


def test_whole_numbers_and_lists_of_them() -> None:
    assert [answer_parser.integer(text) for text in ("0", "-7", " 42. ", "9" * 40)] == [0, -7, 42, int("9" * 40)]
    assert (
        answer_parser.integers("[1, -2, 3]")
        == answer_parser.integers("1 -2 3")
        == answer_parser.integers("1,-2, 3")
        == [1, -2, 3]
    )
    assert answer_parser.integers("[]") == []
    for text in ("", "[1", "1]", "[1,,2]", "[[1]]", "1. 2", "1;2", "[1 2] 3"):
        assert answer_parser.integers(text) is None, text


def test_the_calculator_means_what_python_means() -> None:
    for text in ("1+2*3", "(1+2)*3", "-2**2", "2**3**2", "7//-2", "-7%3", "((4))", "2*-3", "--5", "0**0", "1 - 1"):
        assert calculator.calculate(text) == eval(text), text  # our own constants


@pytest.mark.parametrize(
    "text",
    [
        *("9**9**9**9", "2**99999", "1//0", "1%0", "(1", "1)", "", "1+", "a", "1.5", "٣", "__import__('os')", "2**-1"),
        *("(" * 400, "-" * 400, "9" * 501, "1 2"),
    ],
)
def test_the_calculator_refuses(text: str) -> None:
    with pytest.raises(calculator.Refused):
        calculator.calculate(text)


@given(st.text(alphabet="0123456789+-*/%() ", max_size=60))
def test_the_calculator_returns_or_refuses(text: str) -> None:
    try:
        result = calculator.calculate(text)
    except calculator.Refused:
        return
    assert isinstance(result, int)


def test_working_is_checked() -> None:
    task = find("arithmetic.addition")
    problem = task.sample(5, 2)
    right = problem.data["answer"]
    full = task.check(problem, task.solution(problem))
    assert full.score == 1
    assert full.breakdown == {"correct": 1, "working": 1, "false_steps": 0}
    bare = task.check(problem, f"answer: {right}")
    assert (bare.score, bare.breakdown["working"]) == (1, 0)
    false = task.check(problem, f"2+2=5\nanswer: {right}")
    assert (false.score, false.breakdown["false_steps"]) == (0.5, 1)
    wrong = task.check(problem, task.solution(problem).replace(f"answer: {right}", f"answer: {right + 1}"))
    assert (wrong.score, wrong.breakdown["working"]) == (0, 1)
    # Much that is true but has nothing to do with it is no working.
    noise = task.check(problem, "1+1=2\n" * 500 + f"answer: {right}")
    assert (noise.score, noise.breakdown["working"]) == (1, 0)
