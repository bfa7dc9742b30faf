"""Installs the HTTP layer: error responses, middleware, database, accounts, page kit."""

from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from puna.web import database, pages
from puna.web.accounts import admin_routes, routes
from puna.web.accounts.key_file import KeyFile
from puna.web.accounts.store import Accounts
from puna.web.accounts.throttle import Throttle
from puna.web.auth import Authenticator
from puna.web.errors import ApiError, MissingError, not_found
from puna.web.middleware import Count, SecurityMiddleware
from puna.web.responses import error_response, unexpected
from puna.web.settings import WebSettings


class Web:
    """The state of the HTTP layer, at `app.state.web`.

    schemas: None for a server without a database or pages.
    """

    def __init__(self, settings: WebSettings, schemas: Sequence[database.Schema] | None) -> None:
        from puna.web.accounts.schema import SCHEMA

        self.settings = settings
        self.engine = None if schemas is None else database.open(settings.database, [SCHEMA, *schemas])
        key_file = KeyFile(settings.keys)
        self.accounts = None if self.engine is None else Accounts(self.engine, key_file)
        self.auth = Authenticator(settings, key_file, self.accounts)
        self.throttle = Throttle()

    def owner_link(self, base: str) -> str | None:
        """A one-time link by which the first owner creates their account.

        None when there is an owner, or nobody must sign in.

        base: the server's address, such as http://localhost:8000, unless a public one is set.
        """
        wanted = self.settings.reachable if self.settings.accounts is None else self.settings.accounts
        if self.accounts is None or self.accounts.has_owner or not wanted:
            return None
        base = (self.settings.public_origin or base) + self.settings.root_path
        return f"{base}/account/invitation#{self.accounts.owner_link()}"

    async def close(self) -> None:
        """Close the database."""
        if self.engine is not None:
            self.engine.dispose()


def install(
    app: FastAPI,
    settings: WebSettings,
    *,
    schemas: Sequence[database.Schema] | None,
    count: Count = lambda route, method, status: None,
) -> Web:
    """Install the HTTP layer.

    schemas: of the products' tables. Raises PunaError when the database cannot be opened.
    """
    web = app.state.web = Web(settings, schemas)
    if web.accounts is not None:
        app.include_router(routes.router)
        app.include_router(admin_routes.router)
        app.mount("/static/web", pages.Files(directory=pages.STATIC), name="web-static")
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(MissingError, _missing)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _unexpected)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
        )
    app.add_middleware(SecurityMiddleware, settings=settings, count=count)
    return web


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _missing(request: Request, error: Exception) -> Response:
    return error_response(not_found())


async def _http_error(request: Request, error: Exception) -> Response:
    """What the framework rejects by itself: an unknown path or method."""
    assert isinstance(error, HTTPException)
    message = {
        404: f"There is nothing at {request.url.path}.",
        405: f"{request.url.path} does not answer {request.method}.",
    }.get(error.status_code, str(error.detail))
    return error_response(ApiError(error.status_code, message, headers=error.headers))


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"][1:])
    return error_response(ApiError(400, f"{path}: {first['msg']}" if path else str(first["msg"]), param=path or None))


async def _unexpected(request: Request, error: Exception) -> Response:
    return error_response(unexpected(error))
