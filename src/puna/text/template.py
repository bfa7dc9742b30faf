"""What a model directory says about chats, for software that renders and parses them itself.

`CHAT_TEMPLATE` (chat_template.jinja) renders the same tokens as `puna.text.chat.render`, with one difference that no
template can mend: it makes text, which is tokenised afterwards, so the name of a special token in a user's message
becomes that token. `render` is safe against that.
"""

from importlib.resources import files
from typing import Any

CHAT_TEMPLATE: str = files("puna.text").joinpath("chat_template.jinja").read_text(encoding="utf-8")

# How transformers, vLLM and SGLang take an answer apart again (transformers 5's `response_template`).
RESPONSE_TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "fields": {
        "reasoning_content": {"open_pattern": r"\s*<think>\s*", "close_pattern": r"\s*</think>\s*", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>\s*",
            "close_pattern": r"\s*</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {
            "close_pattern": r"\s*(?:<\|eot_id\|>|<\|eom_id\|>|<\|end_of_text\|>)",
            "content": "text",
        },
    },
}
