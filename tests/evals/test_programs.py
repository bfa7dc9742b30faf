"""Code answers: judged by values in a process of their own, so what a program does to its judges does not matter."""

import pytest

from puna.evals.benchmarks import humaneval_mbpp
from puna.evals.benchmarks.humaneval_mbpp import find_program, score_program
from puna.evals.contract import Item, Text

PROMPT = 'from typing import List\n\n\ndef double(x: int) -> int:\n    """Twice x.\n    >>> double(2)\n    4\n    """\n'
TESTS = """
def check(candidate):
    import random
    for _ in range(3):
        x = random.randint(0, 10**6)
        assert candidate(x) == 2 * x
    assert candidate(5) == 10 and abs(candidate(-1) + 2) < 1e-6
check(candidate)
"""
ITEM = Item(
    "1", Text(PROMPT), {"prompt": PROMPT, "name": "double", "reference": PROMPT + "    return 2 * x\n", "tests": TESTS}
)
EQUAL = (
    "class E(int):\n    __eq__ = __lt__ = lambda self, other: True\n    __sub__ = __add__ = lambda self, other: self\n"
)
WALK = """```python
import sys
def double(x):
    frame = sys._getframe()
    while frame:
        frame.f_locals.update(answers=[[True, 2 * x]], result="passed")
        frame = frame.f_back
    return 0
```"""


@pytest.mark.parametrize(
    "answer",
    [
        "    return x + x\n",
        "    y = x\n    return y * 2",
        "Here it is:\n```python\ndef double(x):\n    return x * 2\n```\nDone.",
        "def double (x):\n    return x * 2\n",
    ],
)
def test_a_right_program_passes(answer):
    score = score_program(ITEM, answer)
    assert (score.value, score.reason, score.parts) == (1.0, "", {"asserted": 0.0})


@pytest.mark.parametrize(
    "answer",
    [
        "    return x\n",
        "    return 2.5 * x\n",
        "",
        "```python\nprint(1)\n```",
        "    import os; os._exit(0)\n",
        "    raise SystemExit(0)\n",
        f"```python\n{EQUAL}def double(x):\n    return E(0)\n```",
        WALK,
        "```python\nimport builtins\nbuiltins.abs = lambda x: 0\ndef double(x):\n    return 0\n```",
        "    return __import__('unittest.mock').mock.ANY\n",
        "    return float('nan')\n",
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_wrong_programs_and_tricks_do_not(answer):
    assert score_program(ITEM, answer).value == 0


def test_tests_with_objects_of_their_own_run_beside_the_program_and_say_so():
    reference = "class Node:\n    def __init__(self, v):\n        self.v = v\n\ndef value(n):\n    return n.v\n"
    target = {"prompt": "", "name": "value", "reference": reference, "tests": "assert value(Node(3)) == 3"}
    item = Item("1", Text(""), target)
    assert score_program(item, reference)[::3] == (1.0, {"asserted": 1.0})
    assert score_program(item, reference.replace("n.v", "4")).value == 0
    assert score_program(item, "def value(n):\n    raise SystemExit(0)\n").value == 0


def test_programs_are_found():
    assert find_program("    return 1\n", "def f():\n", "f") == "def f():\n    return 1\n"
    helper = "import math\n\ndef g():\n    return 1\n\ndef f():\n    'what'\n"
    assert "def g" in find_program("```\ndef f():\n    return g()\n```", helper, "f")
    assert find_program("nothing", "", "f") is None
    assert humaneval_mbpp.tested_name("def a():\n    pass\ndef b():\n    a()", ["assert b() is None"]) == "b"
    assert humaneval_mbpp.tested_name("def a(", ["assert a()"]) is None
