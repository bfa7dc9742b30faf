"""Every benchmark on its real files: the reference answer is right, and no answer at all hurts a scorer."""

import pytest

from puna.evals.catalogue import BENCHMARKS, select, suites
from puna.evals.contract import Choices
from puna.evals.datasets import EvalData
from puna.evals.results import baselines
from puna.evals.runner import chosen, scored

# MBPP's and our programs take a sandbox's time each; they have tests of their own. Hanoi's solver is slow.
SLOW = {"mbpp", "code.synthesis", "code.repair", "planning.hanoi"}
HOSTILE = ["", "NaN", "9" * 10_000_000, "\x00", "[" * 5000, "9**9**9**9", "١٢٣", "\ud800", "</think>" * 100,
           "{}" * 5000, "The answer is " + "(" * 5000,
           "[PLAN]\n" * 3000, "```" * 3000, "<tool_call>" * 3000]  # fmt: skip


@pytest.fixture(scope="module")
def held(test_data):
    return EvalData(test_data / "eval")


@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - SLOW))
def test_references_are_right_and_hostile_answers_are_not(held, name):
    benchmark = BENCHMARKS[name]
    items = chosen(benchmark, benchmark.load(held), 3 if benchmark.code else 25)  # raises for a name used twice
    assert items
    for item in items:
        assert item.body
        if isinstance(item.ask, Choices):
            assert len(item.ask.contexts) == len(item.ask.continuations)
            continue
        assert item.ask.prompt
        if item.reference and (name, item.id) != ("bfcl", "simple_python_200"):  # whose own answer lacks an argument
            assert scored(benchmark, item, item.reference).value == pytest.approx(1), item.reference
    if not isinstance(items[0].ask, Choices):
        for text in HOSTILE if not benchmark.code else HOSTILE[:3]:
            assert 0 <= scored(benchmark, items[0], text).value <= 1
    if not benchmark.code:
        found = baselines(benchmark, items)
        assert 0 <= found["chance"] <= 1


def test_refusing_everything_shows_in_the_baselines(held):
    safe = BENCHMARKS["xstest_safe"]
    items = safe.load(held)
    assert baselines(safe, items)["constant"]["value"] == 1  # always answering
    assert sum(scored(safe, item, "I'm sorry, but I can't help with that.").value for item in items) == 0


def test_suites_hold_what_they_are_named_for():
    assert {"code", "math", "planning", "knowledge", "instruction", "safety", "all"} <= set(suites())
    assert [one.name for one in select("humaneval, code")][:2] == ["humaneval", "mbpp"]
    assert len(suites()["all"]) == len(BENCHMARKS)
