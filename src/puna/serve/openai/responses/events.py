"""Turns the chunks of a chat completion into the items and events of /v1/responses.

There is one assembler a response: it takes chunks, updates the response object, and returns events. Without a stream,
the object is the result. Every field of the specification is present, even if null.
"""

from typing import Any

from pydantic import BaseModel

from puna.serve.openai.protocol import ChatChunk, ChatChunkChoice, ToolCallDelta, new_id, now
from puna.serve.openai.responses.protocol import NamedResponseTool, ResponsesRequest, TextFormat
from puna.web.errors import ApiError

Event = dict[str, Any]


class Assembler:
    """Assembles the response to one request."""

    def __init__(self, asked: ResponsesRequest, model: str) -> None:
        self.response = _blank(asked, model)
        self._number = 0
        self._item: dict[str, Any] | None = None  # the item being written
        self._kind = ""

    def begin(self) -> list[Event]:
        """The events that start a stream."""
        return [self._whole("response.created"), self._whole("response.in_progress")]

    def feed(self, chunk: ChatChunk) -> list[Event]:
        """The events for a chunk."""
        events: list[Event] = []
        for choice in chunk.choices:
            self._take(choice, events)
        if chunk.usage is not None:
            used = chunk.usage
            cached = used.prompt_tokens_details.cached_tokens if used.prompt_tokens_details else 0
            thought = used.completion_tokens_details.reasoning_tokens if used.completion_tokens_details else 0
            self.response["usage"] = {
                "input_tokens": used.prompt_tokens,
                "input_tokens_details": {"cached_tokens": cached},
                "output_tokens": used.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": thought},
                "total_tokens": used.total_tokens,
            }
        return events

    def finish(self) -> list[Event]:
        """The events that end a stream."""
        response = self.response
        if response["status"] == "in_progress":
            response["status"] = "completed"
        events = self._close()
        if not response["output"]:
            events += [*self._open("message"), *self._close()]
        response["completed_at"] = now() if response["status"] == "completed" else None
        return [*events, self._whole(f"response.{response['status']}")]

    def fail(self, error: ApiError) -> list[Event]:
        """The events of a failed response: its last state, then the error as clients expect it."""
        code = error.code or error.type
        self.response |= {"status": "failed", "error": {"code": code, "message": error.message}}
        last = {"code": code, "message": error.message, "param": error.param, **error.body()}
        return [self._whole("response.failed"), self._event("error", **last)]

    # -- items -------------------------------------------------------------------------------------------------------

    def _take(self, choice: ChatChunkChoice, events: list[Event]) -> None:
        delta = choice.delta
        if delta.reasoning_content:
            events += self._open("reasoning")
            self._write(delta.reasoning_content, events, [])
        if delta.content:
            events += self._open("message")
            named = choice.logprobs.content if choice.logprobs else []
            self._write(delta.content, events, [token.model_dump() for token in named])
        for call in delta.tool_calls or ():
            self._call(call, events)
        if choice.finish_reason == "length":
            self.response["status"] = "incomplete"
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}

    def _open(self, kind: str) -> list[Event]:
        """Start an item of text, unless one of its kind is being written."""
        if self._kind == kind:
            return []
        events = self._close()
        self._kind = kind
        if kind == "message":
            part: Event = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item: Event = {"id": new_id("msg"), "type": "message", "role": "assistant", "status": "in_progress"}
        else:
            part = {"type": "reasoning_text", "text": ""}
            item = {"id": new_id("rs"), "type": "reasoning", "summary": [], "status": "in_progress"}
        events.append(self._add(item | {"content": []}))
        assert self._item is not None
        self._item["content"].append(part)
        return [*events, self._at("response.content_part.added", content_index=0, part=dict(part))]

    def _write(self, text: str, events: list[Event], logprobs: list[Event]) -> None:
        assert self._item is not None
        part = self._item["content"][0]
        part["text"] += text
        if self._kind == "message":
            part["logprobs"] += logprobs
            events.append(self._at("response.output_text.delta", content_index=0, delta=text, logprobs=logprobs))
        else:
            events.append(self._at("response.reasoning_text.delta", content_index=0, delta=text))

    def _call(self, call: ToolCallDelta, events: list[Event]) -> None:
        if call.id is not None:
            events += self._close()
            self._kind = "function_call"
            events.append(
                self._add(
                    {
                        "id": new_id("fc"),
                        "type": "function_call",
                        "status": "in_progress",
                        "call_id": call.id,
                        "name": call.function.name,
                        "arguments": "",
                    }
                )
            )
        if call.function.arguments and self._item is not None:
            self._item["arguments"] += call.function.arguments
            events.append(self._at("response.function_call_arguments.delta", delta=call.function.arguments))

    def _add(self, item: Event) -> Event:
        self._item = item
        self.response["output"].append(item)
        return self._event(
            "response.output_item.added", output_index=len(self.response["output"]) - 1, item=_copy(item)
        )

    def _close(self) -> list[Event]:
        """End the item being written."""
        item, kind = self._item, self._kind
        if item is None:
            return []
        # A call is only sent whole.
        cut = self.response["status"] == "incomplete" and kind != "function_call"
        item["status"] = "incomplete" if cut else "completed"
        events = []
        if kind == "function_call":
            arguments = item["arguments"]
            events = [self._at("response.function_call_arguments.done", arguments=arguments, name=item["name"])]
        else:
            part = item["content"][0]
            done: Event = {"content_index": 0, "text": part["text"]}
            if kind == "message":
                done["logprobs"] = part["logprobs"]
            name = "output_text" if kind == "message" else "reasoning_text"
            events = [
                self._at(f"response.{name}.done", **done),
                self._at("response.content_part.done", content_index=0, part=dict(part)),
            ]
        index = len(self.response["output"]) - 1
        events.append(self._event("response.output_item.done", output_index=index, item=_copy(item)))
        self._item, self._kind = None, ""
        return events

    # -- events ------------------------------------------------------------------------------------------------------

    def _at(self, type: str, **fields: Any) -> Event:
        assert self._item is not None
        index = len(self.response["output"]) - 1
        return self._event(type, item_id=self._item["id"], output_index=index, **fields)

    def _whole(self, type: str) -> Event:
        shown = self.response | {"output": [_copy(item) for item in self.response["output"]]}
        return self._event(type, response=shown)

    def _event(self, type: str, **fields: Any) -> Event:
        event = {"type": type, "sequence_number": self._number, **fields}
        self._number += 1
        return event


def _copy(item: Event) -> Event:
    return item | {"content": [dict(part) for part in item["content"]]} if "content" in item else dict(item)


def _blank(asked: ResponsesRequest, model: str) -> dict[str, Any]:
    """The response object before anything is generated."""
    form = asked.text.format if asked.text else TextFormat()
    shown: dict[str, Any] = {"type": form.type}
    if form.type == "json_schema":
        shown |= {"name": form.name, "schema": form.schema_, "strict": form.strict, "description": form.description}
    choice = asked.tool_choice
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": now(),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": None,
        "metadata": asked.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "presence_penalty": asked.presence_penalty or 0.0,
        "frequency_penalty": asked.frequency_penalty or 0.0,
        "previous_response_id": asked.previous_response_id,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": asked.store is not False,
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "text": {"format": shown},
        "tool_choice": choice.model_dump() if isinstance(choice, NamedResponseTool) else choice or "auto",
        "tools": [_tool(tool) for tool in asked.tools or ()],
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": 1.0 if asked.top_p is None else asked.top_p,
        "truncation": asked.truncation or "disabled",
        "usage": None,
        "user": asked.user,
    }


def _tool(tool: BaseModel) -> dict[str, Any]:
    return tool.model_dump()
