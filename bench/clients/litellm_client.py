"""litellm, which Aider and many others are built on: a stream, a function, a schema."""

import json
import os

import litellm

options = {
    "model": f"openai/{os.environ['MODEL']}",
    "api_base": os.environ["BASE_URL"],
    "api_key": "none",
    "messages": [{"role": "user", "content": "Hello"}],
    "num_retries": 0,
}
assert litellm.completion(**options).choices[0].message.content == "Done."
text = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**options, stream=True))
assert text == "Done."
function = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}}
answer = litellm.completion(**options, tools=[{"type": "function", "function": function}])
assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments) == {"a": "echo hello"}
history = [*options["messages"], answer.choices[0].message.model_dump()]
history.append({"role": "tool", "tool_call_id": answer.choices[0].message.tool_calls[0].id, "content": "ok"})
more = litellm.completion(**{**options, "messages": history}, tools=[{"type": "function", "function": function}])
assert more.choices[0].message.content == "Done."
print("chat, a stream, a function and its result")
