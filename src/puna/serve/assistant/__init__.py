"""The assistant's web page: conversations in a browser, kept in a database, without anybody else's scripts.

`store` keeps, `markdown` makes model text harmless, `runs` writes answers that go on when nobody looks, `routes`,
`messages` and `compare` are what the page asks for, `static/` is the page.
"""

from fastapi import FastAPI

from puna.serve.assistant import compare, login, messages, routes, site
from puna.serve.assistant.page import Page
from puna.serve.server import Server

__all__ = ["mount"]


def mount(app: FastAPI, server: Server) -> None:
    """Put the page at / and what it asks for under /app. Raises PunaError when its database cannot be opened."""
    page = app.state.assistant = Page(server)
    server.before_close(page.close)
    for module in (site, login, routes, messages, compare):
        app.include_router(module.router)
    app.mount("/static", site.Files(directory=site.STATIC), name="static")
