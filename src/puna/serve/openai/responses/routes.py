"""/v1/responses, in which a request can refer to an earlier response by its id.

A limited number of responses is kept in memory; the oldest are dropped first. Each belongs to the user who requested
it, and does not exist for anyone else. With `store: false` nothing is kept.
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.responses import Response

from puna.serve.openai.protocol import ChatChunk
from puna.serve.openai.responses.events import Assembler
from puna.serve.openai.responses.protocol import ResponsesRequest, chat_request, messages_of, renamed
from puna.serve.openai.routes import FAILURES, ServerDep, body_of
from puna.serve.openai.streaming import DONE
from puna.serve.server import Server
from puna.web.access import owned, signed_in
from puna.web.auth import User
from puna.web.errors import ApiError
from puna.web.request_body import read_body
from puna.web.responses import EventStreamResponse, WholeResponse

router = APIRouter(responses=FAILURES)


class _StoredResponse(NamedTuple):
    owner: str
    messages: list[dict[str, Any]]
    """The dialogue including the answer, without instructions, which every request gives again."""
    response: dict[str, Any]


class Stored:
    """Responses by id and owner."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, _StoredResponse] = OrderedDict()
        self._of_item: dict[str, str] = {}  # which response an item belongs to

    def put(self, owner: str, messages: list[dict[str, Any]], response: dict[str, Any]) -> None:
        """Store a response; the oldest is dropped if there are too many."""
        self._kept[response["id"]] = _StoredResponse(owner, messages, response)
        self._of_item |= {item["id"]: response["id"] for item in response["output"]}
        while len(self._kept) > self._limit:
            self._forget(next(iter(self._kept)))

    def get(self, owner: str, id: str, *, param: str | None = None) -> _StoredResponse:
        """Return a response of this owner. Raises ApiError 404."""
        kept = self._kept.get(id)
        if kept is None or kept.owner != owner:
            raise ApiError(404, f"There is no response '{id}'.", param=param, code="response_not_found")
        return kept

    def item(self, owner: str, id: str) -> dict[str, Any] | None:
        """An item that a response of this owner put out, or None."""
        kept = self._kept.get(self._of_item.get(id, ""))
        if kept is None or kept.owner != owner:
            return None
        return next((item for item in kept.response["output"] if item["id"] == id), None)

    def remove(self, owner: str, id: str) -> None:
        """Delete a response of this owner. Raises ApiError 404."""
        self.get(owner, id)
        self._forget(id)

    def _forget(self, id: str) -> None:
        for item in self._kept.pop(id).response["output"]:
            self._of_item.pop(item["id"], None)


@router.post("/v1/responses", response_model=dict[str, Any], openapi_extra=body_of(ResponsesRequest))
@signed_in
async def create(request: Request, server: ServerDep, owner: User) -> Response:
    """Generate a response, and store it."""
    asked = await read_body(request, ResponsesRequest)
    stored: Stored = request.app.state.responses
    messages = messages_of(asked.input, partial(stored.item, owner))
    if asked.previous_response_id is not None:
        before = stored.get(owner, asked.previous_response_id, param="previous_response_id")
        messages = [*before.messages, *messages]
    if not messages:
        raise ApiError(400, "The input has nothing that a model can read.", param="input")
    assembler = Assembler(asked, server.models.get(asked.model).card.id)
    chunks = _chunks(server, asked, messages)

    def keep() -> None:
        if asked.store is not False:
            stored.put(owner, [*messages, *_answer(assembler.response)], assembler.response)

    if asked.stream:
        return EventStreamResponse(
            _events(assembler, chunks, keep),
            write_seconds=server.settings.write_seconds,
            done=DONE,
            failed=lambda error: b"".join(map(_frame, assembler.fail(error))),
        )

    async def whole() -> bytes:
        async with aclosing(chunks):
            async for chunk in chunks:
                assembler.feed(chunk)
        assembler.finish()
        keep()
        return to_json(assembler.response)

    return WholeResponse(whole, write_seconds=server.settings.write_seconds)


@router.get("/v1/responses/{id}", response_model=dict[str, Any])
@owned
async def retrieve(id: str, request: Request, owner: User) -> dict[str, Any]:
    """Return a stored response."""
    stored: Stored = request.app.state.responses
    return stored.get(owner, id).response


@router.delete("/v1/responses/{id}")
@owned
async def delete(id: str, request: Request, owner: User) -> dict[str, Any]:
    """Delete a stored response."""
    stored: Stored = request.app.state.responses
    stored.remove(owner, id)
    return {"id": id, "object": "response", "deleted": True}


async def _chunks(server: Server, asked: ResponsesRequest, messages: list[dict[str, Any]]) -> AsyncGenerator[ChatChunk]:
    """The chat's chunks; with truncation, the oldest messages are dropped until the rest fits."""
    messages = list(messages)
    while True:
        try:
            async with aclosing(server.chat(chat_request(asked, messages))) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        except ApiError as error:
            short = error.code == "context_length_exceeded" and asked.truncation == "auto"
            at = next((i for i, message in enumerate(messages[:-1]) if message["role"] != "system"), None)
            if not short or at is None:
                raise renamed(error) from None
            del messages[at]
            while len(messages) > at + 1 and messages[at]["role"] == "tool":
                del messages[at]  # the result of a call that was dropped


async def _events(
    assembler: Assembler, chunks: AsyncGenerator[ChatChunk], keep: Callable[[], None]
) -> AsyncGenerator[bytes]:
    begun = False
    async with aclosing(chunks):
        async for chunk in chunks:
            if not begun:
                begun = True
                for event in assembler.begin():
                    yield _frame(event)
            for event in assembler.feed(chunk):
                yield _frame(event)
    last = assembler.finish()
    keep()
    for event in last:
        yield _frame(event)


def _frame(event: dict[str, Any]) -> bytes:
    return b"event: " + event["type"].encode() + b"\ndata: " + to_json(event) + b"\n\n"


def _answer(response: dict[str, Any]) -> list[dict[str, Any]]:
    """The model's answer as messages for the next request."""
    items = [item for item in response["output"] if item["type"] != "message" or item["content"][0]["text"]]
    return messages_of(ResponsesRequest.model_validate({"input": items}).input) if items else []
