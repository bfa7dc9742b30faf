"""Two answers to one prompt: from two models, or twice from one.

Which one is better is stored as a preference.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from pydantic import Field

from puna.apps.assistant.answer import AnswerDelta, Draft, SamplingSettings, generate
from puna.apps.assistant.live_answer import LiveAnswer
from puna.apps.assistant.messages import MAX_MESSAGE
from puna.apps.assistant.state import Assistant, AssistantDep
from puna.web.access import owned, signed_in
from puna.web.auth import User
from puna.web.csrf import same_origin
from puna.web.errors import ApiError
from puna.web.markdown import render, render_plain
from puna.web.request_body import Body, read_body
from puna.web.streams import event_response, sse

SIDES = ("a", "b")

router = APIRouter(prefix="/app/compare", dependencies=[Depends(same_origin)], include_in_schema=False)


class ComparisonRequest(Body):
    """A prompt and the two models that answer it."""

    prompt: str = Field(min_length=1, max_length=MAX_MESSAGE)
    models: tuple[str, str]
    system: str = Field(default="", max_length=100_000)
    settings: SamplingSettings = SamplingSettings()


class BlindChoice(Body):
    better: Literal["a", "b", "same"]


@router.post("")
@signed_in
async def compare(request: Request, assistant: AssistantDep, user: User) -> StreamingResponse:
    """Stream both answers; each event names its `side`."""
    asked = await read_body(request, ComparisonRequest)
    assistant.answers.check(user)
    store = assistant.store
    backends = [assistant.server.models.get(name) for name in asked.models]
    prompt = [{"role": "system", "content": asked.system}] if asked.system else []
    prompt.append({"role": "user", "content": asked.prompt})
    settings = asked.settings.model_dump(exclude_none=True)
    row = await assistant.query(store.add_comparison, user, prompt=prompt, models=asked.models, settings=settings)
    answers = []
    for at, (side, backend) in enumerate(zip(SIDES, backends, strict=True)):
        sampling = asked.settings
        if sampling.seed is not None:
            sampling = sampling.model_copy(update={"seed": sampling.seed + at})  # one seed would give one answer twice
        version = {f"weight_version_{side}": backend.card.weight_version}
        await assistant.query(store.write_comparison, user, row["id"], **version)
        source = generate(assistant.server, backend, prompt, sampling)
        plain = backend.card.stage == "base"
        answers.append(_start(assistant, user, row["id"], side, source, plain=plain))
    return event_response(_both(row["id"], answers))


@router.get("/{id}")
@owned
async def comparison(id: str, assistant: AssistantDep, user: User) -> dict[str, Any]:
    """A comparison with both answers as text and as HTML."""
    row = await assistant.query(assistant.store.comparison, user, id)
    found = {}
    for side in SIDES:
        backend = assistant.backend(row[f"model_{side}"])
        plain = backend is not None and backend.card.stage == "base"
        found[f"html_{side}"] = (render_plain if plain else render)(row[f"text_{side}"])
    return {**row, **found}


@router.post("/{id}")
@owned
async def judge(id: str, request: Request, assistant: AssistantDep, user: User) -> dict[str, Any]:
    """Store which answer is better."""
    verdict = await read_body(request, BlindChoice)
    await assistant.query(assistant.store.comparison, user, id)
    if any(assistant.answers.active(f"{id}.{side}") for side in SIDES):
        raise ApiError(409, "The answers are still being written.")
    await assistant.query(assistant.store.write_comparison, user, id, better=verdict.better)
    return {"better": verdict.better}


@router.post("/{id}/stop")
@owned
async def stop(id: str, assistant: AssistantDep, user: User) -> dict[str, Any]:
    """Stop both answers; what was written is saved."""
    await assistant.query(assistant.store.comparison, user, id)
    for side in SIDES:
        await assistant.answers.stop(user, f"{id}.{side}")
    return {"stopped": id}


def _start(
    assistant: Assistant, user: str, id: str, side: str, source: AsyncGenerator[AnswerDelta], *, plain: bool
) -> LiveAnswer:
    def save(draft: Draft) -> None:
        assistant.store.write_comparison(user, id, **{f"text_{side}": draft.content})

    def finish(draft: Draft, error: ApiError | None) -> dict[str, Any]:
        save(draft)
        html = render_plain(draft.content) if plain else render(draft.content)
        message = {"html": html, "usage": draft.counts(), "finish_reason": draft.finish_reason}
        return {"message": message, **(error.body() if error else {})}

    return assistant.answers.add(
        f"{id}.{side}", LiveAnswer(user, source, Draft(), save=save, finish=finish, plain=plain)
    )


async def _both(id: str, answers: list[LiveAnswer]) -> AsyncGenerator[str]:
    """The events of both answers as they come."""
    queue: asyncio.Queue[str | None] = asyncio.Queue()

    async def follow(side: str, answer: LiveAnswer) -> None:
        try:
            async for version, event, data in answer.events():
                await queue.put(sse(version, event, data, side=side))
        finally:
            await queue.put(None)

    yield sse(0, "start", {"id": id})
    tasks = [asyncio.create_task(follow(side, answer)) for side, answer in zip(SIDES, answers, strict=True)]
    try:
        left = len(tasks)
        while left:
            event = await queue.get()
            if event is None:
                left -= 1
            else:
                yield event
    finally:
        for task in tasks:
            task.cancel()
