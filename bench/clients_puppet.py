"""A backend for bench/clients.py: Puna's own engine with a random model that is made to say what an agent needs.

A grammar forces each answer: where functions are offered and none was called yet, a call of one of them; then "Done.".
Everything else (reading the request, the prompt, parsing, streams) is what every model gets.
"""

import json
from typing import Any

import torch

from puna.engine.generate import load_engine
from puna.serve.backends.native.backend import NativeBackend
from puna.serve.openai.protocol import ChatRequest, StructuredOutputs

# Of an agent's many tools, one that harms nothing.
LIKED = ("exec_command", "shell", "execute_command", "run_commands", "bash", "Bash", "run_terminal_command")


class Puppet(NativeBackend):
    """The engine, and what it must say."""

    def chat(self, request: ChatRequest, *, deadline_seconds: float | None = None) -> Any:
        """See Backend."""
        free = request.tool_choice in (None, "auto") and request.structured_outputs is None
        if free and (request.response_format is None or request.response_format.type == "text"):
            said = StructuredOutputs(choice=[answer_to(request)])
            request = request.model_copy(update={"structured_outputs": said})
        return super().chat(request, deadline_seconds=deadline_seconds)


def answer_to(request: ChatRequest) -> str:
    """The answer of an agent that calls one function once."""
    if not request.tools or any(message.role == "tool" for message in request.messages):
        return "Done."
    tools = {tool.function.name: tool.function.parameters or {} for tool in request.tools}
    name = next((one for one in LIKED if one in tools), next(iter(tools)))
    call = {"name": name, "arguments": example(tools[name])}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def example(schema: dict[str, Any]) -> Any:
    """A small value that a schema allows."""
    if "enum" in schema or "const" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: example(properties.get(name, {})) for name in schema.get("required", ())}
    if kind == "array":
        return ["echo", "hello"] if schema.get("items", {}).get("type") == "string" else []
    return {"integer": 1, "number": 1, "boolean": False, "null": None}.get(kind, "echo hello")


def open_puppet(model: str, name: str, settings: Any) -> Puppet:
    """See puna.serve.backends.plugins."""
    return Puppet(load_engine(model, device="cpu", dtype=torch.float32, max_batch=8), name or "tiny", settings)


BACKENDS = {"puppet": open_puppet}
