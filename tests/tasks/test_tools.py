"""Episodes: calls, errors that the model is told, and the end."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.tasks import tools
from puna.tasks.catalogue import find


def begin(name: str = "tools.calculator", level: int = 3, **options) -> tools.Episode:
    task = find(name)
    return tools.Episode(task, task.sample(0, level), **options)


def call(name: str, **arguments: str) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def test_a_call_its_result_and_the_answer() -> None:
    episode = begin()
    assert [message["role"] for message in episode.messages] == ["system", "user"]
    assert episode.tools[0]["function"]["name"] == "calculator"
    results = episode.step(tools.first_call(episode.problem.data), token_ids=[5, 6])
    assert results == [{"role": "tool", "content": str(episode.problem.data["answer"])}]
    assert episode.messages[2]["token_ids"] == [5, 6]
    assert not episode.done
    assert episode.step(f"answer: {results[0]['content']}") == []
    assert episode.verdict.passed
    assert episode.verdict.breakdown == {"correct": 1, "calls": 1, "failed_calls": 0}
    with pytest.raises(PunaError, match="finished"):
        episode.step("answer: 1")


def test_a_result_alone_is_no_answer() -> None:
    episode = begin()
    episode.step(tools.first_call(episode.problem.data))
    episode.step(str(episode.problem.data["answer"]))
    assert episode.verdict.score == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<tool_call>", "does not end"),
        ("<tool_call>nonsense</tool_call>", "in JSON"),
        ("<tool_call>[]</tool_call>", "in JSON"),
        ("<tool_call>" + "[" * 50_000 + "</tool_call>", "in JSON"),
        (call("shell", code="ls"), "no tool named 'shell'"),
        (call("python", code="1"), "no tool named 'python'"),
        (call("calculator", code="1"), "needs 'expression'"),
        (call("calculator", expression="9**9**9**9"), "too large"),
        (call("calculator", expression="__import__('os')"), "not understood"),
    ],
)
def test_wrong_calls_get_a_sentence(text: str, told: str) -> None:
    episode = begin()
    (result,) = episode.step(text)
    assert result["content"].startswith("error:")
    assert told in result["content"]
    assert episode.failed == 1


def test_floods_and_endless_episodes_end() -> None:
    episode = begin(turns=2)
    results = episode.step(call("calculator", expression="1+1") * 50)
    assert len(results) == tools.MAX_CALLS
    assert "more than" in results[-1]["content"]
    assert episode.step(call("calculator", expression="1+1")) == []
    assert episode.verdict.score == 0
    assert "2 turns" in episode.verdict.reason


def test_calls_in_reasoning_are_not_made() -> None:
    assert tools.calls_in("<think>" + call("calculator", expression="1") + "</think>answer: 1") == []


def test_python_runs_where_it_is_told_to() -> None:
    seen = []
    episode = begin("tools.python", 2, run_code=lambda code: seen.append(code) or "144")
    (result,) = episode.step(call("python", code="print(144)"))
    assert (seen, result["content"]) == (["print(144)"], "144")


@pytest.mark.parametrize("level", range(1, 6))
def test_references_to_python_are_right(level: int, capsys) -> None:
    task = find("tools.python")
    for seed in range(10):
        data = task.sample(seed, level).data
        exec(data["code"], {})  # our own generator's source
        assert capsys.readouterr().out.strip() == str(data["answer"])


def test_python_in_the_sandbox() -> None:
    try:
        assert tools.in_sandbox("print(6 * 7)") == "42"
    except (ImportError, PunaError) as error:
        pytest.skip(f"needs a sandbox: {error}")
    assert tools.in_sandbox("1/0").startswith("error: ZeroDivisionError")
    assert tools.in_sandbox("pass").startswith("error: the program printed nothing")
    assert tools.in_sandbox("while True: pass").startswith("error: time")


@given(st.text(max_size=200) | st.text(alphabet='<>/tool_call{}":[],namerguts', max_size=200))
def test_no_message_breaks_an_episode(text: str) -> None:
    episode = begin()
    episode.step(text)
    assert episode.done or episode.messages[-1]["role"] == "tool"
