"""Requests of /v1/responses, and how they become chat requests: items become messages."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from puna.serve.openai.messages import arguments_of, readable, readable_parts
from puna.serve.openai.protocol import ChatRequest, ContentPart, Wire, with_functions_only
from puna.web.errors import ApiError, invalid


class MessageItem(Wire):
    """A message; "type" is optional."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart]

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, given: Any) -> Any:
        return readable(given) if isinstance(given, dict) else given


class CallItem(Wire):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class CallOutputItem(Wire):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[ContentPart]


class ReasoningPart(Wire):
    type: str
    text: str = ""


class ReasoningItem(Wire):
    type: Literal["reasoning"]
    content: list[ReasoningPart] | None = None
    summary: list[ReasoningPart] | None = None


class ReferenceItem(Wire):
    """An item of a stored response, by its id."""

    type: Literal["item_reference"]
    id: str


def _kind(item: Any) -> str:
    return (item.get("type") or "message") if isinstance(item, dict) else getattr(item, "type", "message")


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[ReferenceItem, Tag("item_reference")],
    Discriminator(_kind),
]
_KINDS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")


def readable_items(items: list[Any]) -> list[Any]:
    """Items without what no model can read: calls and results of tools that only OpenAI runs."""
    found = []
    for item in items:
        if not isinstance(item, dict):
            found.append(item)
            continue
        kind = _kind(item)
        if kind == "custom_tool_call":
            arguments = {"input": item.get("input")}
            found.append({**item, "type": "function_call", "arguments": json.dumps(arguments)})
        elif kind == "function_call":
            found.append({**item, "arguments": arguments_of(item.get("arguments"))})
        elif kind in ("function_call_output", "custom_tool_call_output"):
            output = item.get("output")
            output = readable_parts(output, past=True) if isinstance(output, list) else "" if output is None else output
            found.append({**item, "type": "function_call_output", "output": output})
        elif kind in _KINDS:
            found.append(item)
    return found


class ResponseTool(Wire):
    """A function, without the inner object that chat has.

    Tools that OpenAI runs itself are not supported.
    """

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedResponseTool(Wire):
    type: Literal["function"]
    name: str


class TextFormat(Wire):
    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None
    description: str | None = None


class TextOptions(Wire):
    format: TextFormat = Field(default_factory=TextFormat)


class ResponsesRequest(Wire):
    model: str | None = None
    input: str | list[Item]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    include: list[str] | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedResponseTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    background: bool | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _possible(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for name in ("conversation", "prompt"):
                if given.get(name) is not None:
                    raise ValueError(f"{name} is not supported.")
            if given.get("background"):
                raise ValueError("background is not supported: responses are generated while the client waits.")
            given = with_functions_only(given)
            if given.get("input") == []:
                raise ValueError("the input is empty.")
            if isinstance(given.get("input"), list):
                given = {**given, "input": readable_items(given["input"])}
        return given

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())


def messages_of(
    items: str | Sequence[Item], stored: Callable[[str], dict[str, Any] | None] = lambda id: None
) -> list[dict[str, Any]]:
    """Convert items to chat messages; calls and reasoning join the assistant's message.

    stored: the item that a reference names; what is not stored is left out.
    """
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    messages: list[dict[str, Any]] = []
    thought = ""

    def assistant() -> dict[str, Any]:
        """The assistant's message being assembled."""
        nonlocal thought
        if thought or not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", **({"reasoning_content": thought} if thought else {})})
            thought = ""
        return messages[-1]

    for item in _resolved(items, stored):
        if isinstance(item, ReasoningItem):
            thought = "".join(part.text for part in item.content or item.summary or ())
        elif isinstance(item, CallItem):
            call = {"id": item.call_id, "function": {"name": item.name, "arguments": item.arguments}}
            assistant().setdefault("tool_calls", []).append(call)
        elif isinstance(item, CallOutputItem):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
        elif item.role == "assistant" and thought:
            assistant()["content"] = _text(item.content)
        else:
            messages.append({"role": item.role, "content": _text(item.content)})
    return messages


def _resolved(items: Sequence[Item], stored: Callable[[str], dict[str, Any] | None]) -> Iterator[Item]:
    for item in items:
        if not isinstance(item, ReferenceItem):
            yield item
        elif (found := stored(item.id)) is not None:
            yield from ResponsesRequest.model_validate({"input": [found]}).input  # type: ignore[misc]


def chat_request(asked: ResponsesRequest, messages: list[dict[str, Any]]) -> ChatRequest:
    """The chat that answers. messages: the whole dialogue, without the instructions."""
    if asked.instructions:
        messages = [{"role": "system", "content": asked.instructions}, *messages]
    given: dict[str, Any] = {
        "model": asked.model,
        "messages": messages,
        "max_completion_tokens": asked.max_output_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "presence_penalty": asked.presence_penalty,
        "frequency_penalty": asked.frequency_penalty,
        "parallel_tool_calls": asked.parallel_tool_calls,
    }
    if asked.wants_logprobs:
        given |= {"logprobs": True, "top_logprobs": asked.top_logprobs or 0}
    if asked.tools:
        given["tools"] = [
            {"type": "function", "function": tool.model_dump(exclude_unset=True, exclude={"type"})}
            for tool in asked.tools
        ]
    choice = asked.tool_choice
    named = isinstance(choice, NamedResponseTool)
    given["tool_choice"] = {"type": "function", "function": {"name": choice.name}} if named else choice  # type: ignore[union-attr]
    form = asked.text.format if asked.text else TextFormat()
    if form.type == "json_schema":
        if form.schema_ is None:
            raise ApiError(400, "text.format of type json_schema needs a schema.", param="text.format.schema")
        schema = {"name": form.name or "answer", "schema": form.schema_, "strict": form.strict}
        given["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif form.type == "json_object":
        given["response_format"] = {"type": "json_object"}
    try:
        return ChatRequest.model_validate({key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        raise invalid(error) from None


_PARAMS = {"messages": "input", "response_format": "text.format", "max_completion_tokens": "max_output_tokens"}


def renamed(error: ApiError) -> ApiError:
    """A chat's error about a parameter that has another name here."""
    first, dot, rest = (error.param or "").partition(".")
    if first in _PARAMS:
        error.param = _PARAMS[first] + (f"{dot}{rest}" if first != "messages" else "")
    return error


def _text(content: str | list[ContentPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
