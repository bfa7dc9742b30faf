"""Two answers to one prompt side by side: from two models, or twice from one. Which is better is kept."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from puna.serve.assistant.generation import Draft, Sampling, answer
from puna.serve.assistant.markdown import render
from puna.serve.assistant.messages import LONGEST_MESSAGE, stream
from puna.serve.assistant.page import Here, Page, User, same_origin
from puna.serve.assistant.runs import Run, sse
from puna.serve.body import read_body
from puna.serve.errors import ApiError

SIDES = ("a", "b")

router = APIRouter(prefix="/app/compare", dependencies=[Depends(same_origin)], include_in_schema=False)


class Asked(BaseModel):
    """A prompt and the two models that answer it."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=LONGEST_MESSAGE)
    models: tuple[str, str]
    system: str = Field(default="", max_length=100_000)
    settings: Sampling = Sampling()


class Judged(BaseModel):
    model_config = ConfigDict(extra="forbid")

    better: Literal["a", "b", "same"]


@router.post("")
async def compare(request: Request, page: Here, user: User) -> StreamingResponse:
    """Stream both answers; each event says of which `side` it is."""
    asked = await read_body(request, Asked)
    page.runs.check(user)
    backends = [page.server.models.get(name) for name in asked.models]
    prompt = [{"role": "system", "content": asked.system}] if asked.system else []
    prompt.append({"role": "user", "content": asked.prompt})
    row = await page.ask(page.store.add_comparison, user, prompt=prompt, models=asked.models)
    runs = []
    for at, (side, backend) in enumerate(zip(SIDES, backends, strict=True)):
        sampling = asked.settings
        if sampling.seed is not None:
            sampling = sampling.model_copy(update={"seed": sampling.seed + at})  # twice the same would say nothing
        version = backend.card.weight_version
        await page.ask(page.store.write_comparison, user, row["id"], **{f"weight_version_{side}": version})
        source = answer(page.server, backend, prompt, sampling)
        runs.append(_start(page, user, row["id"], side, source))
    return stream(_both(row["id"], runs))


@router.get("/{id}")
async def comparison(id: str, page: Here, user: User) -> dict[str, Any]:
    """A comparison with both answers as text and as HTML."""
    row = await page.ask(page.store.comparison, user, id)
    return {**row, **{f"html_{side}": render(row[f"text_{side}"]) for side in SIDES}}


@router.post("/{id}")
async def judge(id: str, request: Request, page: Here, user: User) -> dict[str, Any]:
    """Say which was better."""
    judged = await read_body(request, Judged)
    await page.ask(page.store.comparison, user, id)
    if any(page.runs.writing(f"{id}.{side}") for side in SIDES):
        raise ApiError(409, "The answers are still being written.")
    await page.ask(page.store.write_comparison, user, id, better=judged.better)
    return {"better": judged.better}


@router.post("/{id}/stop")
async def stop(id: str, page: Here, user: User) -> dict[str, Any]:
    """End both answers where they are."""
    await page.ask(page.store.comparison, user, id)
    for side in SIDES:
        run = page.runs.get(user, f"{id}.{side}")
        if run is not None and run.result is None:
            run.stop()
            await run.task
    return {"stopped": id}


def _start(page: Page, user: str, id: str, side: str, source: AsyncGenerator[Any]) -> Run:
    def save(draft: Draft) -> None:
        page.store.write_comparison(user, id, **{f"text_{side}": draft.content})

    def finish(draft: Draft, error: ApiError | None) -> dict[str, Any]:
        save(draft)
        message = {"html": render(draft.content), "usage": draft.counts(), "finish_reason": draft.finish_reason}
        return {"message": message, **(error.body() if error else {})}

    return page.runs.start(f"{id}.{side}", user, source, Draft(), save=save, finish=finish)


async def _both(id: str, runs: list[Run]) -> AsyncGenerator[str]:
    """The events of both runs as they come."""
    queue: asyncio.Queue[str | None] = asyncio.Queue()

    async def follow(side: str, run: Run) -> None:
        try:
            async for version, event, data in run.follow():
                await queue.put(sse(version, event, data, side=side))
        finally:
            await queue.put(None)

    yield sse(0, "start", {"id": id})
    tasks = [asyncio.create_task(follow(side, run)) for side, run in zip(SIDES, runs, strict=True)]
    try:
        left = len(tasks)
        while left:
            piece = await queue.get()
            if piece is None:
                left -= 1
            else:
                yield piece
    finally:
        for task in tasks:
            task.cancel()
