"""Conversations: making, listing, searching, renaming, forgetting them and taking them away."""

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from puna.serve.assistant import export
from puna.serve.assistant.generation import Sampling
from puna.serve.assistant.page import Here, Page, User, same_origin
from puna.serve.auth import LOCAL
from puna.serve.body import read_body

LONGEST_TITLE, LONGEST_SYSTEM = 200, 100_000

router = APIRouter(prefix="/app", dependencies=[Depends(same_origin)], include_in_schema=False)


class Change(BaseModel):
    """What of a conversation is to be other; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    title: str | None = Field(default=None, min_length=1, max_length=LONGEST_TITLE)
    model: str | None = Field(default=None, min_length=1, max_length=500)
    system: str | None = Field(default=None, max_length=LONGEST_SYSTEM)
    settings: Sampling | None = None

    def changes(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True, exclude={"settings"}) | (
            {"settings": self.settings.model_dump(exclude_none=True)} if self.settings is not None else {}
        )


class Shown(BaseModel):
    """Which branch to show: the one through this message."""

    message: str


class Opinion(BaseModel):
    """What a person thinks of an answer."""

    model_config = ConfigDict(extra="forbid")

    message: str
    rating: Literal[1, -1] | None = None
    correction: str | None = Field(default=None, max_length=1_000_000)


@router.get("/models")
def models(page: Here, user: User) -> dict[str, Any]:
    """The models that are served, the first being the usual one, and who asks."""
    cards = [backend.card for backend in page.server.models]
    fields = ("id", "stage", "max_model_len", "weight_version", "parameters")
    return {
        "user": user,
        "signed_in": user != LOCAL,
        "models": [{name: getattr(card, name) for name in fields} for card in cards],
    }


@router.get("/conversations")
async def conversations(
    page: Here,
    user: User,
    q: Annotated[str, Query(max_length=500)] = "",
    before: float | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 100,
) -> dict[str, Any]:
    """The last used first. q: what to look for in titles and messages. before: the `updated` to page on from."""
    rows = await page.ask(page.store.conversations, user, query=q, before=before, limit=limit)
    return {"conversations": rows, "more": len(rows) == limit}


@router.post("/conversations")
async def create(request: Request, page: Here, user: User) -> dict[str, Any]:
    """A new conversation, with the usual model unless another is named."""
    wanted = (await read_body(request, Change)).changes()
    wanted["model"] = page.server.models.get(wanted.get("model")).card.id
    return await page.ask(page.store.create, user, **wanted)


@router.get("/conversations/{id}")
async def conversation(id: str, page: Here, user: User) -> dict[str, Any]:
    """A conversation and the branch of it that is shown."""
    return await page.ask(_whole, page, user, id)


@router.patch("/conversations/{id}")
async def change(id: str, request: Request, page: Here, user: User) -> dict[str, Any]:
    """Rename it, or choose another model, system prompt or settings."""
    wanted = await read_body(request, Change)
    if wanted.model is not None:
        page.server.models.get(wanted.model)
    return await page.ask(page.store.change, user, id, wanted.changes())


@router.delete("/conversations/{id}")
async def delete(id: str, page: Here, user: User) -> dict[str, Any]:
    """Forget it. What is being written in it stops."""
    messages = await page.ask(page.store.tree, user, id)
    await page.ask(page.store.delete, user, id)
    for message in messages:  # only now: what stops sooner may be kept, and its reader told that it is done
        if run := page.runs.get(user, message["id"]):
            run.stop()
    return {"deleted": id}


@router.get("/conversations/{id}/branches")
async def branches(id: str, page: Here, user: User) -> dict[str, Any]:
    """The whole tree: every message with its parent, and how each begins."""
    rows = await page.ask(page.store.tree, user, id)
    return {"messages": [{k: m[k] for k in ("id", "parent", "role", "created")} | _start(m) for m in rows]}


@router.post("/conversations/{id}/branches")
async def show(id: str, request: Request, page: Here, user: User) -> dict[str, Any]:
    """Show another branch."""
    wanted = await read_body(request, Shown)
    await page.ask(page.store.show, user, id, wanted.message)
    return await page.ask(_whole, page, user, id)


@router.get("/conversations/{id}/export")
async def take(id: str, page: Here, user: User, format: Literal["markdown", "json"] = "markdown") -> Response:
    """A conversation as a file: the branch that is shown as Markdown, or everything as JSON."""
    title = (await page.ask(page.store.conversation, user, id))["title"]
    if format == "json":
        whole = await page.ask(export.conversation_json, page.store, user, id)
        return _file(json.dumps(whole, ensure_ascii=False, indent=2), "application/json", f"{_name(title)}.json")
    text = await page.ask(export.conversation_markdown, page.store, user, id)
    return _file(text, "text/markdown; charset=utf-8", f"{_name(title)}.md")


@router.get("/export")
async def take_all(page: Here, user: User) -> Response:
    """Everything of the user's as JSON."""
    whole = await page.ask(export.everything, page.store, user)
    return _file(json.dumps(whole, ensure_ascii=False, indent=2), "application/json", "puna-conversations.json")


@router.get("/preferences")
def preferences(page: Here, user: User) -> StreamingResponse:
    """What the user preferred, a line of JSON each (see docs/assistant.md)."""
    lines: Iterator[str] = export.preferences(page.store, user)
    return StreamingResponse(lines, media_type="application/x-ndjson", headers=_attached("puna-preferences.jsonl"))


@router.post("/feedback")
async def feedback(request: Request, page: Here, user: User) -> dict[str, Any]:
    """A thumb or a correction; both null: none of it."""
    given = await read_body(request, Opinion)
    await page.ask(page.store.rate, user, given.message, rating=given.rating, correction=given.correction)
    return {"rating": given.rating, "correction": given.correction or None}


def _whole(page: Page, user: str, id: str) -> dict[str, Any]:
    path = page.store.path(user, id)
    return {"conversation": page.store.conversation(user, id), "messages": [page.view(row) for row in path]}


def _start(message: dict[str, Any]) -> dict[str, str]:
    return {"begins": " ".join(message["content"][:200].split())[:80]}


def _name(title: str) -> str:
    """A title as a file name in ASCII."""
    return re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-").lower()[:60] or "conversation"


def _attached(name: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="{name}"'}


def _file(text: str, kind: str, name: str) -> Response:
    return Response(text.encode(), media_type=kind, headers=_attached(name))
