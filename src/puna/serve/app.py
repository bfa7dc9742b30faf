"""The application: all routes, and what is the same for every one of them."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from puna import __version__
from puna.serve import routes
from puna.serve.answer import error_response, unexpected
from puna.serve.backend import Models
from puna.serve.errors import ApiError
from puna.serve.guard import Guard
from puna.serve.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from puna.serve.responses import routes as responses
from puna.serve.responses.protocol import ResponsesRequest
from puna.serve.server import Server
from puna.serve.settings import Settings

REQUESTS: list[type[BaseModel]] = [
    ChatRequest,
    CompletionRequest,
    ResponsesRequest,
    EmbeddingRequest,
    TokenizeRequest,
    DetokenizeRequest,
]


def create_app(settings: Settings, models: Models) -> FastAPI:
    """The server of these models. `app.state.puna` is its Server. The caller closes it (`Server.close`)."""
    # FastAPI's own documentation pages load scripts from elsewhere.
    app = FastAPI(title="Puna", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    server = Server(settings, models)
    app.state.puna = server
    app.state.responses = responses.Stored(settings.max_stored_responses)
    app.include_router(routes.api)
    app.include_router(responses.router)
    app.include_router(routes.health)
    if settings.page:
        from puna.serve.assistant import mount

        mount(app, server)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _defect)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(Guard, settings=settings, metrics=server.metrics)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The description of all routes, with the bodies that routes read themselves."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, bodies = models_json_schema(
            [(kind, "validation") for kind in REQUESTS], ref_template="#/components/schemas/{model}"
        )
        schema.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"])
        app.openapi_schema = schema
    return app.openapi_schema


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses by itself: no such route, no such method."""
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


async def _defect(request: Request, error: Exception) -> Response:
    return error_response(unexpected(error))
