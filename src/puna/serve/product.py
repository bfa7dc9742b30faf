"""What an application on top of the server is, so that `create_app` can mount it."""

from typing import Protocol

from fastapi import FastAPI
from sqlalchemy import Engine

from puna.serve.server import Server
from puna.web.database import Schema


class Product(Protocol):
    """An application such as the assistant.

    schema: its tables, which are migrated before it is mounted.
    """

    schema: Schema

    def mount(self, app: FastAPI, server: Server, engine: Engine) -> None:
        """Add the product's routes. Raises PunaError when it cannot start."""
