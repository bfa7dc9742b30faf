"""Messages and tools of requests.

Clients send whole dialogues again and again, so whatever a dialogue contains must not be refused for ever after: calls
with arguments that were cut off, refusals, calls and tools of kinds that only OpenAI runs. What a model can read is
kept, the rest is left out. What a user asks now and a model cannot do (read a picture) is refused.
"""

import contextlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import from_json

from puna.serve.openai.objects import ToolCall, Wire

TokenIds = list[Annotated[int, Field(ge=0)]]
TEXT_PARTS = ("text", "input_text", "output_text", "summary_text", "reasoning_text")
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning")


class ContentPart(Wire):
    """A part of a message's content; only text is supported."""

    type: Literal["text", "input_text", "output_text", "summary_text", "reasoning_text"]
    text: str


class ChatMessage(Wire):
    """One message of a dialogue.

    reasoning_content and token_ids are extensions: see puna.text.chat.render.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    token_ids: TokenIds | None = None

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, given: Any) -> Any:
        return readable(given) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _has_content(self) -> "ChatMessage":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of role {self.role} needs content.")
        return self

    def text(self) -> str:
        """Its content as one string."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class FunctionTool(Wire):
    name: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Wire):
    type: Literal["function"]
    function: FunctionTool


class NamedFunction(Wire):
    name: str


class NamedTool(Wire):
    type: Literal["function"] = "function"
    function: NamedFunction


# -- history ---------------------------------------------------------------------------------------------------------


def readable(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what no model can read. Anything else that is wrong with it stays."""
    message = dict(message)
    if message.get("role") == "function":  # the older form of a tool's result
        message["role"] = "tool"
    if isinstance(message.get("function_call"), dict) and not message.get("tool_calls"):
        message["tool_calls"] = [{"function": message["function_call"]}]
    if isinstance(message.get("tool_calls"), list):
        message["tool_calls"] = [readable_call(call) for call in message["tool_calls"]]
    if isinstance(message.get("reasoning"), str):  # vLLM's and OpenRouter's name for it
        message.setdefault("reasoning_content", message["reasoning"])
    past = message.get("role") in ("assistant", "tool")
    if isinstance(message.get("content"), list):
        message["content"] = readable_parts(message["content"], past=past)
    refusal = message.get("refusal")
    if past and message.get("content") is None and not _says(message):
        message["content"] = refusal if isinstance(refusal, str) else ""
    return message


def readable_parts(parts: list[Any], *, past: bool) -> list[Any]:
    """Parts of a content as text. past: the model wrote them or a tool returned them, so none of them is refused."""
    found = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "refusal" and isinstance(part.get("refusal"), str):
            found.append({"type": "text", "text": part["refusal"]})
        elif not past or kind in TEXT_PARTS:
            found.append(part)
        elif isinstance(part, str):
            found.append({"type": "text", "text": part})
        elif kind not in _THOUGHTS:
            found.append({"type": "text", "text": f"[{kind or 'a part'} that is not text]"})
    return found


def readable_call(call: Any) -> Any:
    """A call of the dialogue as a call of a function with an object of arguments."""
    if not isinstance(call, dict):
        return call
    custom = call.get("custom")
    if isinstance(custom, dict):
        function: Any = {"name": custom.get("name"), "arguments": json.dumps({"input": custom.get("input")})}
    else:
        function = call.get("function")
    if isinstance(function, dict):
        function = {"name": function.get("name") or "", "arguments": arguments_of(function.get("arguments"))}
    return {"id": call.get("id") or "", "type": "function", "function": function}


def arguments_of(given: Any) -> str:
    """A call's arguments as a JSON object: of JSON that was cut off, what came before that."""
    value = given
    if isinstance(given, str):
        try:
            value = json.loads(given)
        except (ValueError, RecursionError):
            value = _beginning(given)
        else:
            if isinstance(value, dict):
                return given
    if not isinstance(value, dict):
        value = {"arguments": value} if value else {}
    return json.dumps(value, ensure_ascii=False)


def _beginning(text: str) -> Any:
    """The JSON value at the start of a text, or what there is of it; the text itself if it is not JSON."""
    text = text.strip()
    with contextlib.suppress(ValueError, RecursionError):
        return json.JSONDecoder().raw_decode(text)[0]
    with contextlib.suppress(ValueError):
        return from_json(text, allow_partial="trailing-strings")
    return text


def _says(message: dict[str, Any]) -> bool:
    return any(message.get(key) for key in ("tool_calls", "reasoning_content")) or message.get("token_ids") is not None
