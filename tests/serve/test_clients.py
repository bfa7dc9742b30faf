"""What known clients send, as they send it: requests of Codex, Continue, Cline, Aider, the AI SDK and LangChain.

bench/clients.py runs the clients themselves, where a package registry has them.
"""

import json
from typing import Any

import pytest

SHELL = {
    "type": "function",
    "name": "shell",
    "description": "Runs a shell command and returns its output.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {"command": {"type": "array", "items": {"type": "string"}}, "workdir": {"type": "string"}},
        "required": ["command"],
        "additionalProperties": False,
    },
}
# What OpenAI runs itself, or only its own models know.
HOSTED: list[dict[str, Any]] = [
    {
        "type": "custom",
        "name": "apply_patch",
        "format": {"type": "grammar", "syntax": "lark", "definition": "start: /./"},
    },
    {"type": "web_search", "external_web_access": False},
    {"type": "web_search_preview", "search_context_size": "low"},
    {"type": "local_shell"},
    {"type": "image_generation"},
    {"type": "code_interpreter", "container": {"type": "auto"}},
    {"type": "file_search", "vector_store_ids": ["vs_1"]},
    {"type": "computer_use_preview", "display_width": 1, "display_height": 1, "environment": "mac"},
    {"type": "mcp", "server_label": "x", "server_url": "https://example.com"},
    {"type": "namespace", "name": "mcp__x", "tools": []},
]


def responses(live, **body: Any):
    answer = live.post("/v1/responses", {"max_output_tokens": 4, "input": "Hello", **body})
    assert answer.status_code == 200, answer.text
    return answer


def chat(live, **body: Any):
    answer = live.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, **body}
    )
    assert answer.status_code == 200, answer.text
    return answer


# -- tools that a server cannot run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hosted", HOSTED, ids=lambda tool: tool["type"])
def test_tools_of_other_types_are_skipped_and_functions_kept(live, hosted: dict[str, Any]) -> None:
    answer = responses(live, tools=[hosted, SHELL, hosted]).json()
    assert [tool["name"] for tool in answer["tools"]] == ["shell"]
    responses(live, tools=[hosted])
    responses(live, tools=[hosted, SHELL], tool_choice={"type": hosted["type"]})
    function = {"type": "function", "function": {key: SHELL[key] for key in ("name", "parameters")}}
    chat(live, tools=[hosted, function])
    chat(
        live,
        tools=[{"type": "custom", "custom": {"name": "x"}}],
        tool_choice={"type": "custom", "custom": {"name": "x"}},
    )


def test_a_tool_that_is_skipped_is_not_shown_to_the_model(live) -> None:
    count = responses(live, tools=[SHELL]).json()["usage"]["input_tokens"]
    assert responses(live, tools=[*HOSTED, SHELL]).json()["usage"]["input_tokens"] == count


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools(live, mode: str) -> None:
    tools = [{"type": "function", "function": {"name": name, "parameters": {"maxProperties": 0}}} for name in "abc"]
    allowed = {"mode": mode, "tools": [{"type": "function", "function": {"name": "b"}}]}
    options = {"tools": tools, "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}}
    answer = chat(live, **options, max_tokens=80).json()["choices"][0]
    if mode == "required":
        assert [call["function"]["name"] for call in answer["message"]["tool_calls"]] == ["b"]
    flat = [{"type": "function", "name": name, "parameters": {"maxProperties": 0}} for name in "abc"]
    choice = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "c"}]}
    answer = responses(live, tools=flat, tool_choice=choice, max_output_tokens=80).json()
    if mode == "required":
        assert [item["name"] for item in answer["output"]] == ["c"]


# -- Codex, wire_api "responses" -------------------------------------------------------------------------------------


def test_codex(live) -> None:
    body = {
        "model": "tiny",
        "instructions": "You are a coding agent.",
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions>"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "List the files."}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": "gAAAA"},
            {"type": "function_call", "name": "shell", "arguments": '{"command": ["ls', "call_id": "call_1"},
            {"type": "function_call_output", "call_id": "call_1", "output": "failed to parse arguments"},
            {
                "type": "custom_tool_call",
                "status": "completed",
                "call_id": "call_2",
                "name": "apply_patch",
                "input": "***",
            },
            {"type": "custom_tool_call_output", "call_id": "call_2", "output": "{}"},
            {"type": "local_shell_call", "call_id": "call_3", "status": "completed", "action": {"type": "exec"}},
            {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}},
            {"type": "ghost_snapshot", "ghost_commit": {}},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Done."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Thanks."}]},
        ],
        "tools": [SHELL, *HOSTED],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199a",
        "text": {"verbosity": "medium"},
        "client_metadata": {"x": "y"},
    }
    answer = live.post("/v1/responses", body)
    assert answer.status_code == 200, answer.text
    kinds = [line[7:] for line in answer.text.splitlines() if line.startswith("event: ")]
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")


def test_the_ai_sdk_refers_to_items(live) -> None:
    first = responses(live, input=[{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}]).json()
    item = first["output"][0]
    said = item["content"][0]["text"]
    more = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        {"type": "item_reference", "id": item["id"]},
        {"role": "user", "content": [{"type": "input_text", "text": "Go on"}]},
    ]
    whole = [more[0], {"role": "assistant", "content": [{"type": "output_text", "text": said}]}, more[2]]
    unknown = [more[0], {"type": "item_reference", "id": "msg-unknown"}, more[2]]
    counts = [responses(live, input=one).json()["usage"]["input_tokens"] for one in (more, whole, unknown)]
    assert counts[0] == counts[1]
    assert counts[2] <= counts[0]


# -- chat ------------------------------------------------------------------------------------------------------------

CHAT: dict[str, dict[str, Any]] = {
    "Continue": {
        "messages": [
            {"role": "system", "content": "You are in agent mode."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "read_file", "arguments": ""}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": ""},
            {"role": "user", "content": "And now?"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "parallel_tool_calls": False,
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "read_file",
                    "description": "",
                    "parameters": {
                        "type": "object",
                        "required": ["filepath"],
                        "properties": {"filepath": {"type": "string"}},
                    },
                },
            }
        ],
    },
    "Cline": {
        "messages": [
            {"role": "system", "content": "You are Cline."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "<task>x</task>"}, {"type": "text", "text": "<env>"}],
            },
            {"role": "assistant", "content": "<read_file><path>a.py</path></read_file>", "reasoning_details": []},
            {"role": "user", "content": [{"type": "text", "text": "[read_file] Result:"}]},
        ],
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": None,
        "reasoning_effort": None,
    },
    "Aider": {
        "messages": [{"role": "system", "content": "Act as an expert."}, {"role": "user", "content": "Hello"}],
        "temperature": 0,
        "stream": True,
        "extra_headers": {"HTTP-Referer": "https://aider.chat"},
        "num_ctx": 8192,
    },
    "LangChain": {
        "messages": [
            {"role": "user", "content": "Hello", "name": None},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "id": "c1", "function": {"name": "Add", "arguments": '{"a": 1'}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "Error"}]},
        ],
        "stream": False,
        "n": 1,
        "stop": ["a", "b", "c", "d", "e", "f"],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "Add",
                    "description": "Add.",
                    "strict": True,
                    "parameters": {
                        "type": "object",
                        "properties": {"a": {"type": "integer"}},
                        "required": ["a"],
                        "additionalProperties": False,
                    },
                },
            }
        ],
        "tool_choice": "auto",
    },
    "the AI SDK": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "tree", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "null"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "tree",
                    "parameters": {
                        "$schema": "http://json-schema.org/draft-07/schema#",
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {"v": {"type": "string"}, "kids": {"type": "array", "items": {"$ref": "#"}}},
                    },
                },
            }
        ],
        "tool_choice": "auto",
        "stream": True,
        "stream_options": {"include_usage": True},
    },
}


@pytest.mark.parametrize("client", CHAT)
def test_chat(live, client: str) -> None:
    answer = chat(live, **{"max_tokens": 4, **CHAT[client], "max_completion_tokens": 4})
    if CHAT[client]["stream"]:
        assert answer.text.endswith("data: [DONE]\n\n")
        events = [json.loads(frame[6:]) for frame in answer.text.split("\n\n") if frame.startswith("data: {")]
        assert not any("error" in event for event in events)
        if "stream_options" in CHAT[client]:
            assert all("usage" in event for event in events)
            assert [event["usage"] is None for event in events] == [True] * (len(events) - 1) + [False]
        else:
            assert not any("usage" in event for event in events)
    else:
        assert answer.json()["choices"][0]["message"]
