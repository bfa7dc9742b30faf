"""The application: OpenAI's API, and the products it is given."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from puna.serve.backends.base import Models
from puna.serve.openai import routes
from puna.serve.openai.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from puna.serve.openai.responses import routes as responses
from puna.serve.openai.responses.protocol import ResponsesRequest
from puna.serve.product import Product
from puna.serve.server import Server
from puna.serve.settings import Settings
from puna.version import __version__
from puna.web.app import install

REQUESTS: list[type[BaseModel]] = [
    ChatRequest,
    CompletionRequest,
    ResponsesRequest,
    EmbeddingRequest,
    TokenizeRequest,
    DetokenizeRequest,
]


def create_app(settings: Settings, models: Models, *, products: Sequence[Product] = ()) -> FastAPI:
    """Create the server of these models.

    `app.state.puna` is its Server, which the caller closes (`Server.close`).

    products: applications to mount. Without any, and without accounts, there are no pages and no database.
    Raises PunaError when the database cannot be opened.
    """
    # FastAPI's own documentation pages load scripts from elsewhere.
    app = FastAPI(title="Puna", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    server = Server(settings, models)
    schemas = [product.schema for product in products] if products or settings.accounts else None
    web = install(app, settings, schemas=schemas, count=server.metrics.count)
    app.state.puna = server
    app.state.responses = responses.Stored(settings.max_stored_responses)
    app.include_router(routes.api)
    app.include_router(responses.router)
    app.include_router(routes.health)
    for product in products:
        assert web.engine is not None
        product.mount(app, server, web.engine)
    server.before_close(web.close)  # after the products, which save what they have
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The description of all routes, including the bodies that routes read themselves."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, bodies = models_json_schema(
            [(kind, "validation") for kind in REQUESTS], ref_template="#/components/schemas/{model}"
        )
        schema.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"])
        app.openapi_schema = schema
    return app.openapi_schema
