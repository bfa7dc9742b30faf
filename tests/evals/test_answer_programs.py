"""A right program is found however it is wrapped, and what is found is what was written."""

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.evals.benchmarks.humaneval_mbpp import BENCHMARKS, score_program
from puna.evals.contract import Item, Text
from puna.evals.datasets import EvalData
from puna.evals.scoring.programs import find_program
from puna.tasks.answer_parser import program
from puna.tasks.fences import fenced_blocks

PROMPT = 'from typing import List\n\n\ndef double(x: int) -> int:\n    """Twice x.\n    >>> double(2)\n    4\n    """\n'
WHOLE = "def double(x: int) -> int:\n    return 2 * x\n"
LONGER = (
    "import math\n\n\ndef g(x):\n    if x:\n        return x\n    return 0\n\n\ndef double(x):\n    return 2 * g(x)\n"
)

WRAPPED = [
    WHOLE,
    f"```python\n{WHOLE}```",
    f"```\n{WHOLE}```",
    f"```python\n{WHOLE}",
    f"```python\n{WHOLE}\n\nprint(double(3",
    f"~~~python\n{WHOLE}~~~",
    f"~~~~\n{WHOLE}~~~~",
    f"````python\n{WHOLE}````",
    f"```python:solution.py\n{WHOLE}```",
    f"```solution.py\n{WHOLE}```",
    f'```python title="solution.py" {{1,2}}\n{WHOLE}```',
    f"``` {{.python .numberLines}}\n{WHOLE}```",
    f"```Python3\n{WHOLE}```",
    f"Here it is: ```python\n{WHOLE}```",
    f"```python\n{WHOLE.rstrip()}```\nThat is all.",
    f"**Solution:**\n\n```python\n{WHOLE}```\n\nIt doubles `x`.",
    "1. First:\n\n   ```python\n   def double(x):\n       return 2 * x\n   ```\n\n2. Done.",
    "- So:\n  ```python\n  def double(x):\n      return 2 * x\n  ```",
    f"1. So:\n   ```python\n{WHOLE}   ```",
    "    ```python\n    def double(x):\n        return 2 * x\n    ```",
    "        ```python\n        def double(x):\n            return 2 * x\n        ```",
    "\t```python\n\tdef double(x):\n\t    return 2 * x\n\t```",
    "> ```python\n> def double(x):\n>     return 2 * x\n> ```",
    "```python\n    def double(x):\n        return 2 * x\n```",
    f"```python\n{WHOLE}```".replace("\n", "\r\n"),
    WHOLE.replace("\n", "\r\n"),
    f"```python\nfrom __future__ import annotations\n\n{WHOLE}```",
    f"from __future__ import annotations\n{WHOLE}",
    f'"""Doubles."""\n# more\nfrom __future__ import annotations, division\nimport math\n\n{WHOLE}',
    f"Sure, this is it.\n\n{WHOLE}\nIt returns twice its argument, from any number.",
    f"```python\n{WHOLE}```\n\nUse it:\n\n```python\nprint(double(2))\n```\n\nIt prints:\n\n```\n4\n```",
    f"```python\ndef double(x):\n    return x\n```\n\nNo, that is wrong:\n\n```python\n{WHOLE}```",
    f"```python\n{WHOLE}\n\nif __name__ == '__main__':\n    print(double(2))\n```",
    "```python\ndouble = lambda x: 2 * x\n```",
    f"<think>\n```python\ndef double(x):\n    return 0\n```\n</think>\n\n{WHOLE}",
    f"```python\n{LONGER}```",
    LONGER,
]
BODIES = [
    "    return 2 * x\n",
    "    return 2 * x",
    "return 2 * x\n",
    " return 2 * x\n",
    "   return 2 * x\n",
    "        return 2 * x\n",
    "\treturn 2 * x\n",
    "\n    return 2 * x\n",
    "y = x\nreturn y * 2\n",
    "y = x\n    return y * 2\n",
    "    y = x\r\n    return y * 2\r\n",
    "if x:\n        return 2 * x\n    return 0\n",
    "if x:\n    return 2 * x\nreturn 0\n",
    "for _ in range(1):\n        return 2 * x\n",
    "  if x:\n    return 2 * x\n  return 0\n",
    "```python\n    return 2 * x\n```",
    "```python\nreturn 2 * x\n```",
    "    return 2 * x\n\nThis doubles it.",
    "    def double(y, factor):\n        return y * factor\n\n    return double(x, 2)\n",
    "    # first\n    def inner(y):\n        return y\n\n    return 2 * inner(x)\n",
]


def run(source):
    """Run a program of these tests and return its function's value."""
    place = {"__name__": "program"}
    exec(compile(source, "program.py", "exec", dont_inherit=True), place)
    return place["double"](21)


@pytest.mark.parametrize("answer", WRAPPED)
@pytest.mark.parametrize("prompt", [PROMPT, ""])
def test_a_right_program_is_found_however_it_is_wrapped(answer, prompt):
    assert run(find_program(answer, prompt, "double")) == 42


@pytest.mark.parametrize("answer", BODIES)
def test_a_right_body_is_found_however_it_is_indented(answer):
    assert run(find_program(answer, PROMPT, "double")) == 42


@pytest.mark.parametrize(
    "answer", ["```python\nprint(1)\n```", "    return x\n", "", "I cannot.", "```python\ndef double(x):\n```"]
)
def test_what_is_no_right_program_is_not_made_one(answer):
    found = find_program(answer, PROMPT, "double")
    with pytest.raises((SyntaxError, AssertionError)):
        assert run(found) == 42
    assert find_program("nothing here", "", "double") is None


@pytest.mark.parametrize("answer", [WRAPPED[27], WRAPPED[17], BODIES[9], WRAPPED[4]])
def test_the_sandbox_agrees(answer):
    tests = "assert double(5) == 10\nassert double(-1) == -2"
    target = {"prompt": PROMPT, "name": "double", "reference": PROMPT + "    return 2 * x\n", "tests": tests}
    assert score_program(Item("1", Text(PROMPT), target), answer).value == 1


@pytest.mark.parametrize("name", ["humaneval", "mbpp", "mbpp_sanitized"])
def test_references_are_found_unchanged(test_data, name):
    """As they are, in a fence with another fence's marks, and with Windows' line ends: the same program each time."""
    benchmark = next(one for one in BENCHMARKS if one.name == name)
    for item in benchmark.load(EvalData(test_data / "eval"))[::7]:
        prompt, function = item.target["prompt"], item.target["name"]
        wanted = ast.dump(ast.parse(item.target["reference"]))
        for answer in (item.reference, item.reference.replace("\n", "\r\n")):
            assert ast.dump(ast.parse(find_program(answer, prompt, function))) == wanted
        for fence in ("```python\n{}\n```", "~~~\n{}\n~~~", "```py:a.py\n{}"):
            found = find_program(fence.format(item.target["reference"]), "", function)
            assert ast.dump(ast.parse(found)) == wanted


# -- fences ------------------------------------------------------------------------------------------------------------

LINES = st.lists(
    st.text(alphabet="abc =():\"'#1", max_size=12).filter(lambda line: line.strip()), min_size=1, max_size=6
)


@settings(max_examples=300, deadline=None)
@given(LINES, st.sampled_from(["```", "~~~", "`````"]), st.text("pyton3:.{}= ", max_size=10), st.integers(0, 9))
def test_what_is_fenced_reads_back(lines, mark, info, indent):
    space = " " * indent
    text = "\n".join(space + line for line in [mark + info, *lines, mark])
    [block] = fenced_blocks(f"Before.\n\n{text}\n\nAfter.")
    assert block.content == "".join(f"{line}\n" for line in lines)
    assert (block.info, block.closed) == (info.strip(), True)
    [cut] = fenced_blocks(text.rsplit("\n", 1)[0])
    assert (cut.content, cut.closed) == (block.content, False)


@pytest.mark.parametrize(
    "text", ["```\n" * 40_000, "```\n" + "> " * 60_000, "~~~" + "- " * 60_000, "\n> ```" * 20_000, "`" * 150_000]
)
def test_no_text_hurts_the_reading(text):
    assert all(block.content is not None for block in fenced_blocks(text))
    assert find_program(text, PROMPT, "double") is not None


def test_puna_s_own_tasks_read_the_same_fences_but_only_closed_ones():
    for answer in (
        f"~~~python\n{WHOLE}~~~",
        f"1. So:\n\n   ```python:a.py\n   {WHOLE.rstrip().replace(chr(10), chr(10) + '   ')}\n   ```",
    ):
        assert program(answer).text == WHOLE.rstrip()
    assert program(f"```python\n{WHOLE}").text is None
