"""What a model directory carries lets transformers 5 take an answer apart: reasoning, tool calls, text."""

from collections.abc import Callable
from pathlib import Path

import pytest

from puna.text.chat import render
from puna.text.templates import CHAT_TEMPLATE
from puna.text.tokenizer import Tokenizer

CALLS = [
    {"function": {"name": "weather", "arguments": {"city": "Lima", "days": 2}}},
    {"function": {"name": "time", "arguments": {}}},
]


@pytest.mark.parametrize("calls", [[], CALLS[:1], CALLS], ids=["text", "one call", "two calls"])
def test_transformers_parses_a_rendered_answer(
    make: Callable[..., Path], tokenizer: Tokenizer, calls: list[dict[str, object]]
) -> None:
    transformers = pytest.importorskip("transformers", "5.0", reason="needs transformers 5")
    directory = make(stage="chat")
    assert (directory / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    theirs = transformers.AutoTokenizer.from_pretrained(str(directory))
    if not hasattr(theirs, "parse_response"):
        pytest.skip("this transformers has no parse_response")
    question = [{"role": "user", "content": "Will it rain?"}]
    answer = {"role": "assistant", "reasoning_content": "I must look.", "content": "Let me see.", "tool_calls": calls}
    prompt = render(question, tokenizer, add_generation_prompt=True).ids
    whole = render([*question, answer], tokenizer).ids
    assert theirs.apply_chat_template(question, add_generation_prompt=True, return_dict=False) == prompt
    parsed = theirs.parse_response(tokenizer.decode(whole[len(prompt) :]), prefix=tokenizer.decode(prompt))
    assert parsed["role"] == "assistant"
    assert parsed["reasoning_content"] == "I must look."
    assert parsed["content"] == "Let me see."
    found = [call["function"] for call in parsed.get("tool_calls") or []]
    assert found == [call["function"] for call in calls]
