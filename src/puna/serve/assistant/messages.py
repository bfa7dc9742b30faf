"""Messages: saying something, and answers, which are streamed, stopped, made again, and continued from any token."""

from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from puna.serve.assistant.generation import Draft, Sampling, alternative, answer, continued, shown
from puna.serve.assistant.page import Here, Page, User, same_origin
from puna.serve.assistant.runs import Run, sse
from puna.serve.body import read_body
from puna.serve.errors import ApiError

LONGEST_MESSAGE = 1_000_000

router = APIRouter(
    prefix="/app/conversations/{id}/messages", dependencies=[Depends(same_origin)], include_in_schema=False
)


class Said(BaseModel):
    """Something to say. parent: after which message; null begins the conversation, or another version of its start."""

    model_config = ConfigDict(extra="forbid")

    content: str = Field(min_length=1, max_length=LONGEST_MESSAGE)
    parent: str | None = None


class Onwards(BaseModel):
    """Where to continue. Without a position: at the end. With one: in a new answer, taking there another token."""

    model_config = ConfigDict(extra="forbid")

    position: int | None = Field(default=None, ge=0)
    alternative: int | None = Field(default=None, ge=0)


@router.post("")
async def say(id: str, request: Request, page: Here, user: User) -> StreamingResponse:
    """Say something and stream the answer. An edit is said after the parent of what it replaces."""
    said = await read_body(request, Said)
    page.runs.check(user)
    if said.parent is not None:
        parent = await page.ask(page.store.message, user, id, said.parent)
        if parent["role"] != "assistant":
            raise ApiError(400, "A message follows an answer.", param="parent")
    mine = await page.ask(page.store.add_message, user, id, parent=said.parent, role="user", content=said.content)
    return await _answer(page, user, id, mine["id"])


@router.post("/{message}/regenerate")
async def regenerate(id: str, message: str, request: Request, page: Here, user: User) -> StreamingResponse:
    """Another answer to the same. message: an answer, or what has none yet."""
    page.runs.check(user)
    row = await page.ask(page.store.message, user, id, message)
    return await _answer(page, user, id, row["parent"] if row["role"] == "assistant" else message)


@router.post("/{message}/continue")
async def go_on(id: str, message: str, request: Request, page: Here, user: User) -> StreamingResponse:
    """Continue an answer that was cut short; or begin another one with its first tokens and another choice there."""
    wanted = await read_body(request, Onwards)
    page.runs.check(user)
    row = await page.ask(page.store.message, user, id, message)
    if row["role"] != "assistant" or page.runs.writing(message):
        raise ApiError(400, "Only a finished answer can be continued.", param="message")
    tokens = await page.ask(page.store.tokens, user, id, message)
    if wanted.position is None:
        prefix = continued(tokens) if tokens else Draft(row["content"], row["reasoning"])
        return await _answer(page, user, id, row["parent"], prefix=prefix, into=message)
    if wanted.position >= len(tokens) or wanted.alternative is None:
        raise ApiError(400, f"There is no token {wanted.position} with such an alternative.", param="position")
    backend = page.backend(row["model"])
    chosen = alternative(backend, tokens[wanted.position], wanted.alternative)
    if shown(chosen, _special(page, row["model"]))["text"] in _special(page, row["model"]):
        raise ApiError(400, "This token ends the answer; there is nothing to continue.", param="alternative")
    return await _answer(page, user, id, row["parent"], prefix=continued([*tokens[: wanted.position], chosen]))


@router.post("/{message}/stop")
async def stop(id: str, message: str, page: Here, user: User) -> dict[str, Any]:
    """End an answer where it is; what there is stays."""
    await page.ask(page.store.message, user, id, message)
    run = page.runs.get(user, message)
    if run is not None and run.result is None:
        run.stop()
        await run.task
    return {"stopped": message}


@router.get("/{message}/events")
async def events(
    id: str,
    message: str,
    page: Here,
    user: User,
    after: int = 0,
    last_event_id: Annotated[int | None, Header()] = None,
) -> StreamingResponse:
    """Take up an answer on its way. after (or Last-Event-ID): the last event that was seen."""
    row = await page.ask(page.store.message, user, id, message)
    run = page.runs.get(user, message)
    if run is None:
        if row["role"] != "assistant":
            raise ApiError(400, "Nothing is written here.", param="message")
        return stream(_over(await _finished(page, user, id, message)))
    return stream(_followed(run, last_event_id if last_event_id is not None else after))


@router.get("/{message}/tokens")
async def tokens(id: str, message: str, page: Here, user: User) -> dict[str, Any]:
    """The tokens of an answer, each with its log probability and the likeliest others."""
    row = await page.ask(page.store.message, user, id, message)
    special = _special(page, row["model"])
    return {"tokens": [shown(token, special) for token in await page.ask(page.store.tokens, user, id, message)]}


async def _answer(
    page: Page, user: str, id: str, parent: str | None, *, prefix: Draft | None = None, into: str | None = None
) -> StreamingResponse:
    """Start an answer to `parent` and stream it. prefix: how it begins. into: the message that it goes on."""
    store = page.store
    if parent is None:
        raise ApiError(400, "There is nothing to answer.", param="message")
    conversation = await page.ask(store.conversation, user, id)
    backend = page.backend(conversation["model"])
    card = backend.card
    ids_of = card.id if backend.tokenizer is not None else None
    dialogue = await page.ask(store.dialogue, user, id, parent, ids_of=ids_of)
    draft = prefix or Draft()
    made = {"model": card.id, "weight_version": card.weight_version}
    if into is None:
        row = await page.ask(
            store.add_message, user, id, parent=parent, role="assistant", content=draft.content, **made
        )
        message = row["id"]
    else:
        message = into
        await page.ask(store.write, user, message, finish_reason=None, **made)

    def save(draft: Draft) -> None:
        store.write(user, message, content=draft.content, reasoning=draft.reasoning)

    def finish(draft: Draft, error: ApiError | None) -> dict[str, Any]:
        said = draft.content or draft.reasoning or draft.tokens
        if error is not None and not said:
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
        view = {**page.view(store.path(user, id, to=message)[-1]), "writing": False}
        return {"message": view} if error is None else {**error.body(), "message": view}

    sampling = Sampling.model_validate(conversation["settings"])
    source = answer(page.server, backend, dialogue, sampling, prefix=prefix)
    # Before it begins: a refusal comes at once, and takes the answer away again.
    path = await page.ask(store.path, user, id, to=message)
    title = (await page.ask(store.conversation, user, id))["title"]
    views = [page.view(row) for row in path[-2:]]
    views[-1]["writing"] = True
    start = {"messages": views, "title": title}
    run = page.runs.start(message, user, source, draft, save=save, finish=finish)
    return stream(_started(run, start))


async def _started(run: Run, start: dict[str, Any]) -> AsyncGenerator[str]:
    yield sse(0, "start", start)
    async for piece in _followed(run, 0):
        yield piece


async def _followed(run: Run, after: int) -> AsyncGenerator[str]:
    async for version, event, data in run.follow(after):
        yield sse(version, event, data)


async def _over(result: dict[str, Any]) -> AsyncGenerator[str]:
    yield sse(0, "done", result)


async def _finished(page: Page, user: str, id: str, message: str) -> dict[str, Any]:
    """The end of an answer that was over before somebody asked."""
    path = await page.ask(page.store.path, user, id, to=message)
    return {"message": page.view(path[-1])}


def stream(pieces: AsyncGenerator[str]) -> StreamingResponse:
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(pieces, media_type="text/event-stream; charset=utf-8", headers=headers)


def _special(page: Page, model: str | None) -> frozenset[str]:
    """The names of a model's special tokens: what none of them says is text."""
    tokenizer = page.backend(model or "").tokenizer
    return frozenset(tokenizer.special) if tokenizer is not None else frozenset()
