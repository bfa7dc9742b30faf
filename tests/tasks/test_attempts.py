"""Attempts worked on together: who is asked when, from which seed, and that ids stay those that were written."""

from types import SimpleNamespace

import pytest

from puna.core.errors import PunaError
from puna.tasks.catalogue import find
from puna.tasks.episodes import Attempt, run_attempts, seed_of
from puna.text.bytelevel import END_OF_TURN
from puna.text.tokenizer import train_tokenizer

CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "2*3"}}\n</tool_call>'
GRID, CALCULATOR = find("planning.grid"), find("tools.calculator")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Compute the expression with the calculator. " * 20], 400)


def attempts(task, tokenizer, samples, *, seed=5, **options):
    problem = task.sample(1, 1)
    return [Attempt(task, problem, tokenizer, max_tokens=9, seed=seed, sample=n, **options) for n in range(samples)]


class Writer:
    """Writes the given texts, a token a character, and keeps what it was asked."""

    def __init__(self, tokenizer, *texts):
        self.tokenizer, self.texts, self.asked = tokenizer, list(texts), []

    def __call__(self, waiting):
        self.asked.append([(list(group[0].prompt), group[0].turn_seed, len(group)) for group in waiting])
        return [self._written(self.texts.pop(0)) for group in waiting for _ in group]

    def _written(self, text):
        ids = [self.tokenizer.encode(letter)[0] for letter in text] + [self.tokenizer.special[END_OF_TURN]]
        return SimpleNamespace(text=text, ids=ids, finish_reason="stop")


def test_a_group_is_asked_as_one_and_then_each_that_is_not_over_for_itself(tokenizer):
    group, other = attempts(CALCULATOR, tokenizer, 3), attempts(GRID, tokenizer, 1, seed=8)
    begin = group[0].prompt
    writer = Writer(tokenizer, CALL, "answer: 1", CALL, "answer: U", "answer: 6", "answer: 7")
    run_attempts([group, other], writer, longest=10_000)
    first, second = writer.asked
    assert [(seed, count) for _, seed, count in first] == [(5, 3), (8, 1)]
    assert [(seed, count) for _, seed, count in second] == [(seed_of(5, 0, 1), 1), (seed_of(5, 2, 1), 1)]
    assert [one.text for one in group] == ["answer: 6", "answer: 1", "answer: 7"]
    assert [len(one.turns) for one in group] == [2, 1, 2]
    assert all(one.verdict is not None and one.ended for one in group)
    # What is asked next begins with the ids that were written, odd as they are.
    prompt, written = group[0].turns[0]
    assert prompt == begin
    assert second[0][0][: len(prompt) + len(written.ids)] == prompt + written.ids
    [single] = other
    assert (single.verdict, single.transcript) == (None, [{"role": "assistant", "content": "answer: U"}])


def test_an_attempt_without_room_is_not_asked_again(tokenizer):
    [one] = attempts(CALCULATOR, tokenizer, 1)
    writer = Writer(tokenizer, CALL, "answer: 6")
    run_attempts([[one]], writer, longest=len(one.prompt) + 10)
    assert len(writer.asked) == 1
    assert not one.done
    assert (one.verdict.score, one.verdict.reason) == (0, "There was no room for another turn.")


def test_programs_run_where_it_is_said_and_without_a_sandbox_nothing_goes_on(tokenizer):
    def refuse(code):
        raise PunaError("There is no sandbox.", "Get one.")

    python = find("tools.python")
    program = CALL.replace("calculator", "python").replace("expression", "code")
    [one] = attempts(python, tokenizer, 1, run_code=lambda code: code[::-1])
    run_attempts([[one]], Writer(tokenizer, program, "answer: 1"), longest=10_000)
    assert one.transcript[1] == {"role": "tool", "content": "3*2"}
    with pytest.raises(PunaError, match="no sandbox"):
        run_attempts([attempts(python, tokenizer, 1, run_code=refuse)], Writer(tokenizer, program), longest=10_000)
