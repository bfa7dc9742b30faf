"""The assistant: conversations in a browser, stored in a database.

`store` is the database, `answer` turns conversations into requests, `live_answer` is an answer while it is written,
`routes`, `messages` and `compare` are what the page calls, and `static/` is the page.
"""

from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from sqlalchemy import Engine

from puna.apps.assistant import compare, messages, routes
from puna.apps.assistant.schema import SCHEMA
from puna.apps.assistant.state import Assistant
from puna.serve.server import Server
from puna.version import __version__
from puna.web import pages
from puna.web.access import public

__all__ = ["AssistantProduct"]

STATIC = Path(__file__).with_name("static")

_pages = APIRouter(include_in_schema=False)


class AssistantProduct:
    """The assistant as `create_app(..., products=[...])` takes it."""

    schema = SCHEMA

    def mount(self, app: FastAPI, server: Server, engine: Engine) -> None:
        """Put the page at /, and what it calls under /app."""
        assistant = app.state.assistant = Assistant(server, engine)
        server.before_close(assistant.close)
        for router in (_pages, routes.router, messages.router, compare.router):
            app.include_router(router)
        app.mount("/static", pages.Files(directory=STATIC), name="assistant-static")


@_pages.get("/")
@public
def index() -> HTMLResponse:
    """The page."""
    return pages.page(STATIC / "index.html")


@_pages.get("/sw.js")
@public
def service_worker(request: Request) -> Response:
    """The service worker. Its cache is named after the version, so a new Puna loads new files."""
    text = (STATIC / "sw.js").read_text(encoding="utf-8").replace("@VERSION@", __version__)
    headers = {"cache-control": "no-cache", "content-security-policy": "default-src 'none'; connect-src 'self'"}
    return Response(text, media_type="text/javascript; charset=utf-8", headers=headers)
