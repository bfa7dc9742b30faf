"""A server in the conformance table, and how a row is run on it.

A row is a function of a `Target`; it returns what the server did, in a few words, and whether that is right. A row that
raises has failed.
"""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

MESSAGES = [{"role": "user", "content": "Which city is it?"}]
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
Row = Callable[["Target"], tuple[str, bool]]


@dataclass
class Target:
    """A server to measure.

    process: when it was started here. context and vocabulary: of its model. half: id of a token that is the first byte
    of a longer character. strict: it rejects fields that OpenAI's API does not have, so `ignore_eos`, which guarantees
    long texts, is not sent to it; its model has no end token.
    """

    name: str
    url: str
    context: int
    vocabulary: int
    half: int | None = None
    process: subprocess.Popen[bytes] | None = None
    model: str = ""
    strict: bool = False
    api: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        # One connection per request: some servers close kept connections just when they are reused, which is not tested
        # here.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.api = httpx.Client(base_url=self.url, timeout=120, limits=limits, trust_env=False)
        self.model = self.model or self.api.get("/v1/models").json()["data"][0]["id"]

    def body(self, **fields: Any) -> dict[str, Any]:
        """A request's body, with the model's name and without fields that the server rejects."""
        return {"model": self.model, **{k: v for k, v in fields.items() if k != "ignore_eos" or not self.strict}}

    def chat(self, **more: Any) -> httpx.Response:
        fields = {"messages": MESSAGES, "max_tokens": 8, "temperature": 0, **more}
        return self.api.post(CHAT, json=self.body(**fields))

    def complete(self, **more: Any) -> httpx.Response:
        return self.api.post(
            COMPLETE, json=self.body(**{"prompt": "import os", "max_tokens": 8, "temperature": 0, **more})
        )

    def raw(self, body: bytes, path: str = CHAT) -> httpx.Response:
        return self.api.post(path, content=body, headers={"content-type": "application/json"})

    def events(self, answer: httpx.Response) -> list[dict[str, Any]]:
        return [json.loads(frame[6:]) for frame in answer.text.split("\n\n") if frame.startswith("data: {")]


def row_of(rows: list[tuple[str, Row]]) -> Callable[[str], Callable[[Row], Row]]:
    """A decorator that appends a check to `rows` under its name."""

    def row(name: str) -> Callable[[Row], Row]:
        def put(check: Row) -> Row:
            rows.append((name, check))
            return check

        return put

    return row


def refused(answer: httpx.Response, *statuses: int) -> tuple[str, bool]:
    """Whether the request was refused with one of these statuses and in OpenAI's form."""
    form = error_form(answer)
    came = str(answer.status_code)
    if answer.status_code != 200:
        came += f" {form}"
    elif answer.headers.get("content-type", "").startswith("application/json"):
        used = answer.json().get("usage") or {}
        came += f", {used.get('completion_tokens', '?')} tokens"
    return came, answer.status_code in statuses and form == "error object"


def error_form(answer: httpx.Response) -> str:
    try:
        body = answer.json()
    except ValueError:
        return "no JSON"
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str) and isinstance(error.get("type"), str):
        return "error object"
    return "{" + ", ".join(body) + "}" if isinstance(body, dict) else "JSON"


def ask_one(target: Target, check: Row) -> tuple[str, bool]:
    """Returns what the server did, and whether that is right."""
    try:
        return check(target)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:60], False
