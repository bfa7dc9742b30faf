"""Messages and their answers: streamed, stopped, regenerated, continued from any token."""

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from pydantic import Field

from puna.apps.assistant.answer import Draft, SamplingSettings, alternative, continued, generate, shown
from puna.apps.assistant.live_answer import LiveAnswer
from puna.apps.assistant.state import Assistant, AssistantDep
from puna.web.access import owned
from puna.web.auth import User
from puna.web.csrf import same_origin
from puna.web.errors import ApiError
from puna.web.request_body import Body, read_body
from puna.web.streams import Seen, event_response, sse

MAX_MESSAGE = 1_000_000

router = APIRouter(
    prefix="/app/conversations/{id}/messages", dependencies=[Depends(same_origin)], include_in_schema=False
)


class NewMessage(Body):
    """A message.

    parent: the one it follows; null starts the conversation, or another version of its start.
    """

    content: str = Field(min_length=1, max_length=MAX_MESSAGE)
    parent: str | None = None


class Continuation(Body):
    """Where to continue: at the end, or (position given) with another token there."""

    position: int | None = Field(default=None, ge=0)
    alternative: int | None = Field(default=None, ge=0)


@router.post("")
@owned
async def send(id: str, request: Request, assistant: AssistantDep, user: User) -> StreamingResponse:
    """Add a message and stream the answer.

    An edit is sent with the parent of the message it replaces.
    """
    new = await read_body(request, NewMessage)
    assistant.answers.check(user)
    store = assistant.store
    if new.parent is not None:
        parent = await assistant.query(store.message, user, id, new.parent)
        if parent["role"] != "assistant":
            raise ApiError(400, "A message must follow an answer.", param="parent")
    conversation = await assistant.query(store.conversation, user, id)
    assistant.server.models.get(conversation["model"])
    added = await assistant.query(store.add_message, user, id, parent=new.parent, role="user", content=new.content)
    return await _answer(assistant, user, id, added["id"])


@router.post("/{message}/regenerate")
@owned
async def regenerate(id: str, message: str, request: Request, assistant: AssistantDep, user: User) -> StreamingResponse:
    """Stream another answer. message: an answer, or a message that has none yet."""
    assistant.answers.check(user)
    row = await assistant.query(assistant.store.message, user, id, message)
    return await _answer(assistant, user, id, row["parent"] if row["role"] == "assistant" else message)


@router.post("/{message}/continue")
@owned
async def continue_answer(
    id: str, message: str, request: Request, assistant: AssistantDep, user: User
) -> StreamingResponse:
    """Continue an answer that was cut short, or start another from one of its tokens."""
    wanted = await read_body(request, Continuation)
    assistant.answers.check(user)
    row = await assistant.query(assistant.store.message, user, id, message)
    if row["role"] != "assistant" or assistant.answers.active(message):
        raise ApiError(400, "Only a finished answer can be continued.", param="message")
    tokens = await assistant.query(assistant.store.tokens, user, id, message)
    writer = row["model"]  # an answer's beginning is in its model's own tokens
    if wanted.position is None:
        prefix = continued(tokens) if tokens else Draft(row["content"], row["reasoning"])
        return await _answer(assistant, user, id, row["parent"], writer=writer, prefix=prefix, into=message)
    if wanted.position >= len(tokens) or wanted.alternative is None:
        raise ApiError(400, f"There is no token {wanted.position} with such an alternative.", param="position")
    chosen = alternative(assistant.server.models.get(writer), tokens[wanted.position], wanted.alternative)
    special = _special(assistant, writer)
    if shown(chosen, special)["text"] in special:
        raise ApiError(400, "This token ends the answer, so nothing can follow it.", param="alternative")
    prefix = continued([*tokens[: wanted.position], chosen])
    return await _answer(assistant, user, id, row["parent"], writer=writer, prefix=prefix)


@router.post("/{message}/stop")
@owned
async def stop(id: str, message: str, assistant: AssistantDep, user: User) -> dict[str, Any]:
    """Stop an answer; what was written is saved."""
    await assistant.query(assistant.store.message, user, id, message)
    await assistant.answers.stop(user, message)
    return {"stopped": message}


@router.get("/{message}/events")
@owned
async def events(id: str, message: str, assistant: AssistantDep, user: User, seen: Seen) -> StreamingResponse:
    """Resume the stream of an answer after the last event that was seen."""
    row = await assistant.query(assistant.store.message, user, id, message)
    answer = assistant.answers.get(user, message)
    if answer is not None:
        return event_response(answer.follow(seen))
    if row["role"] != "assistant":
        raise ApiError(400, "This message is not an answer.", param="message")
    path = await assistant.query(assistant.store.path, user, id, to=message)
    return event_response(_finished({"message": assistant.view(path[-1])}))


@router.get("/{message}/tokens")
@owned
async def tokens(id: str, message: str, assistant: AssistantDep, user: User) -> dict[str, Any]:
    """The tokens of an answer, each with its log probability and the likeliest alternatives."""
    row = await assistant.query(assistant.store.message, user, id, message)
    special = _special(assistant, row["model"])
    found = await assistant.query(assistant.store.tokens, user, id, message)
    return {"tokens": [shown(token, special) for token in found]}


async def _answer(
    assistant: Assistant,
    user: str,
    id: str,
    parent: str | None,
    *,
    writer: str | None = None,
    prefix: Draft | None = None,
    into: str | None = None,
) -> StreamingResponse:
    """Start an answer to `parent` and stream it.

    writer: the model, if not the conversation's. prefix: how it begins. into: the message that it continues.
    Raises ApiError 404 (model_not_found) when the model is not served any more: no other model answers in its place.
    """
    store = assistant.store
    if parent is None:
        raise ApiError(400, "There is nothing to answer.", param="message")
    conversation = await assistant.query(store.conversation, user, id)
    backend = assistant.server.models.get(writer or conversation["model"])
    card = backend.card
    ids_of = card.id if backend.tokenizer is not None else None
    dialogue = await assistant.query(store.dialogue, user, id, parent, ids_of=ids_of)
    draft = prefix or Draft()
    written_by = {"model": card.id, "weight_version": card.weight_version, "stage": card.stage}
    if into is None:
        row = await assistant.query(
            store.add_message, user, id, parent=parent, role="assistant", content=draft.content, **written_by
        )
        message = row["id"]
    else:
        message = into
        await assistant.query(store.write, user, message, finish_reason=None, **written_by)

    def save(draft: Draft) -> None:
        store.write(user, message, content=draft.content, reasoning=draft.reasoning)

    def finish(draft: Draft, error: ApiError | None) -> dict[str, Any]:
        if error is not None and not (draft.content or draft.reasoning or draft.tokens):
            store.drop_message(user, id, message)
            return {**error.body(), "message": None}
        store.write(
            user,
            message,
            content=draft.content,
            reasoning=draft.reasoning,
            tokens=draft.tokens,
            usage=draft.counts(),
            finish_reason=draft.finish_reason or "stop",
        )
        view = {**assistant.view(store.path(user, id, to=message)[-1]), "writing": False}
        return {"message": view} if error is None else {**error.body(), "message": view}

    sampling = SamplingSettings.model_validate(conversation["settings"])
    source = generate(assistant.server, backend, dialogue, sampling, prefix=prefix)
    plain = card.stage == "base"
    # Read before the answer starts: an error can come at once, and removes the answer again.
    path = await assistant.query(store.path, user, id, to=message)
    title = (await assistant.query(store.conversation, user, id))["title"]
    views = [assistant.view(row) for row in path[-2:]]
    views[-1]["writing"] = True
    answer = assistant.answers.add(message, LiveAnswer(user, source, draft, save=save, finish=finish, plain=plain))
    return event_response(_started(answer, {"messages": views, "title": title}))


async def _started(answer: LiveAnswer, start: dict[str, Any]) -> AsyncGenerator[str]:
    yield sse(0, "start", start)
    async for event in answer.follow():
        yield event


async def _finished(result: dict[str, Any]) -> AsyncGenerator[str]:
    yield sse(0, "done", result)


def _special(assistant: Assistant, model: str | None) -> frozenset[str]:
    """The names of a model's special tokens, which are not text."""
    backend = assistant.backend(model)
    tokenizer = backend.tokenizer if backend is not None else None
    return frozenset(tokenizer.special) if tokenizer is not None else frozenset()
