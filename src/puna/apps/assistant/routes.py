"""Conversations: creating, listing, searching, changing, deleting and exporting them."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from puna.apps.assistant import export, imports
from puna.apps.assistant.answer import SamplingSettings, default_sampling, known_settings
from puna.apps.assistant.starters import starters
from puna.apps.assistant.state import Assistant, AssistantDep
from puna.serve.openai.protocol import ModelCard
from puna.web.access import owned, signed_in
from puna.web.auth import User, Who
from puna.web.csrf import same_origin
from puna.web.downloads import attached, download
from puna.web.errors import ApiError
from puna.web.request_body import Body, read_body

MAX_TITLE, MAX_SYSTEM = 200, 100_000

router = APIRouter(prefix="/app", dependencies=[Depends(same_origin)], include_in_schema=False)


class ConversationChange(Body):
    """What to change about a conversation; what is left out stays."""

    title: str | None = Field(default=None, min_length=1, max_length=MAX_TITLE)
    model: str | None = Field(default=None, min_length=1, max_length=500)
    system: str | None = Field(default=None, max_length=MAX_SYSTEM)
    settings: SamplingSettings | None = None

    def changes(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True, exclude={"settings"}) | (
            {"settings": self.settings.model_dump(exclude_none=True)} if self.settings is not None else {}
        )


class Import(Body):
    """Conversations of a file, each in the form that it has there."""

    conversations: list[Any] = Field(min_length=1, max_length=1000)


class BranchChoice(Body):
    """Which branch to show: the one through this message."""

    message: str


class Opinion(Body):
    """A person's opinion of an answer."""

    message: str
    rating: Literal[1, -1] | None = None
    correction: str | None = Field(default=None, max_length=1_000_000)


@router.get("/models")
@signed_in
def models(request: Request, assistant: AssistantDep, who: Who) -> dict[str, Any]:
    """The models that are served, the default first, and the user's name."""
    cards = [backend.card for backend in assistant.server.models]
    fields = ("id", "stage", "max_model_len", "weight_version", "parameters")

    def described(card: ModelCard) -> dict[str, Any]:
        known = {name: getattr(card, name) for name in fields}
        own = card.introduction.model_dump() if card.introduction else None
        return {**known, "introduction": own, "learned": starters(card), "defaults": default_sampling(card)}

    return {
        "user": who.name,
        "role": who.role,
        "signed_in": request.app.state.web.auth.required,
        "models": [described(card) for card in cards],
    }


@router.get("/conversations")
@signed_in
async def conversations(
    assistant: AssistantDep,
    user: User,
    q: Annotated[str, Query(max_length=500)] = "",
    before: float | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 100,
) -> dict[str, Any]:
    """The last used first.

    q: text to find in titles and messages. before: the last `updated` of the previous page.
    """
    rows = await assistant.query(assistant.store.conversations, user, query=q, before=before, limit=limit)
    return {"conversations": rows, "more": len(rows) == limit}


@router.post("/conversations")
@signed_in
async def create(request: Request, assistant: AssistantDep, user: User) -> dict[str, Any]:
    """Create a conversation, with the default model unless another is named."""
    wanted = (await read_body(request, ConversationChange)).changes()
    wanted["model"] = assistant.server.models.get(wanted.get("model")).card.id
    return await assistant.query(assistant.store.create, user, **wanted)


@router.post("/import")
@signed_in
async def import_conversations(request: Request, assistant: AssistantDep, user: User) -> dict[str, Any]:
    """Store conversations of Puna's, ChatGPT's or Open WebUI's files, and say which could not be read."""
    sent = await read_body(request, Import)
    imported: list[str] = []
    failed: list[dict[str, Any]] = []
    for number, found in enumerate(sent.conversations):
        try:
            read = imports.read_conversation(found)
        except ApiError as error:
            failed.append({"number": number, "message": error.message})
            continue
        read.title, read.system = read.title[:MAX_TITLE], read.system[:MAX_SYSTEM]
        read.settings = known_settings(read.settings)
        default = assistant.server.models.get(None).card.id
        row = await assistant.query(assistant.store.add_imported, user, read, model=default)
        imported.append(row["id"])
    return {"imported": imported, "failed": failed}


@router.get("/conversations/{id}")
@owned
async def conversation(id: str, assistant: AssistantDep, user: User) -> dict[str, Any]:
    """A conversation and the branch of it that is shown."""
    return await assistant.query(_whole, assistant, user, id)


@router.patch("/conversations/{id}")
@owned
async def change(id: str, request: Request, assistant: AssistantDep, user: User) -> dict[str, Any]:
    """Change the title, model, system prompt or settings."""
    wanted = await read_body(request, ConversationChange)
    if wanted.model is not None:
        assistant.server.models.get(wanted.model)
    return await assistant.query(assistant.store.change, user, id, wanted.changes())


@router.delete("/conversations/{id}")
@owned
async def delete(id: str, assistant: AssistantDep, user: User) -> dict[str, Any]:
    """Delete a conversation, and stop the answers being written in it."""
    messages = await assistant.query(assistant.store.tree, user, id)
    await assistant.query(assistant.store.delete, user, id)
    for message in messages:  # only now: an answer that stops sooner would be saved, and its reader told it is done
        if answer := assistant.answers.get(user, message["id"]):
            answer.cancel()
    return {"deleted": id}


@router.get("/conversations/{id}/branches")
@owned
async def branches(id: str, assistant: AssistantDep, user: User) -> dict[str, Any]:
    """The whole tree: every message with its parent and first words."""
    rows = await assistant.query(assistant.store.tree, user, id)
    return {"messages": [{k: m[k] for k in ("id", "parent", "role", "created")} | _start(m) for m in rows]}


@router.post("/conversations/{id}/branches")
@owned
async def show(id: str, request: Request, assistant: AssistantDep, user: User) -> dict[str, Any]:
    """Show another branch."""
    wanted = await read_body(request, BranchChoice)
    await assistant.query(assistant.store.show, user, id, wanted.message)
    return await assistant.query(_whole, assistant, user, id)


@router.get("/conversations/{id}/export")
@owned
async def export_one(
    id: str, assistant: AssistantDep, user: User, format: Literal["markdown", "json"] = "markdown"
) -> Response:
    """A conversation as a file: the branch that is shown as Markdown, or everything as JSON."""
    title = (await assistant.query(assistant.store.conversation, user, id))["title"]
    if format == "json":
        whole = await assistant.query(export.conversation_json, assistant.store, user, id)
        text, kind, suffix = json.dumps(whole, ensure_ascii=False, indent=2), "application/json", ".json"
    else:
        text = await assistant.query(export.conversation_markdown, assistant.store, user, id)
        kind, suffix = "text/markdown; charset=utf-8", ".md"
    return download(text, kind, title, suffix, otherwise="conversation")


@router.get("/export")
@signed_in
async def export_all(assistant: AssistantDep, user: User) -> Response:
    """All of the user's data as JSON."""
    whole = await assistant.query(export.everything, assistant.store, user)
    return download(json.dumps(whole, ensure_ascii=False, indent=2), "application/json", "puna-conversations", ".json")


@router.get("/preferences")
@signed_in
def preferences(assistant: AssistantDep, user: User) -> StreamingResponse:
    """The user's preferences, one JSON object a line (see docs/assistant.md)."""
    lines: Iterator[str] = export.preferences(assistant.store, user)
    return StreamingResponse(lines, media_type="application/x-ndjson", headers=attached("puna-preferences", ".jsonl"))


@router.post("/feedback")
@owned
async def feedback(request: Request, assistant: AssistantDep, user: User) -> dict[str, Any]:
    """Store a rating or a correction of an answer; both null: delete them."""
    given = await read_body(request, Opinion)
    rated = {"rating": given.rating, "correction": given.correction}
    await assistant.query(assistant.store.rate, user, given.message, **rated)
    return {"rating": given.rating, "correction": given.correction or None}


def _whole(assistant: Assistant, user: str, id: str) -> dict[str, Any]:
    path = assistant.store.path(user, id)
    return {
        "conversation": assistant.store.conversation(user, id),
        "messages": [assistant.view(row) for row in path],
    }


def _start(message: dict[str, Any]) -> dict[str, str]:
    return {"begins": " ".join(message["content"][:200].split())[:80]}
