"""An application of the HTTP layer alone, without models, and clients that act as browsers of different people."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from puna.web.app import Web, install
from puna.web.settings import WebSettings

sys.path.insert(0, str(Path(__file__).parent))  # so that tests import what they share: `xss_vectors`

ORIGIN = "http://localhost"
PASSWORD = "a long enough password"


@dataclass
class Site:
    """An application, and browsers of it."""

    app: FastAPI
    web: Web

    def browser(self, **headers: str) -> TestClient:
        return TestClient(self.app, base_url=ORIGIN, headers={"origin": ORIGIN, **headers})

    def person(self, name: str, role: str = "member") -> TestClient:
        """A browser that is signed in as a new account."""
        accounts = self.web.accounts
        assert accounts is not None
        token = accounts.owner_link() if role == "owner" else accounts.invite(role, inviter=None)["token"]  # type: ignore[arg-type]
        made = self.browser()
        body = {"token": token, "name": name, "password": PASSWORD}
        answer = made.post("/app/invitations/accept", json=body)
        assert answer.status_code == 200, answer.text
        return made


@contextlib.contextmanager
def make_site(data: Path, **settings: Any) -> Iterator[Site]:
    app = FastAPI(redirect_slashes=False)
    web = install(app, WebSettings(data=str(data), **{"accounts": True, **settings}), schemas=[])
    yield Site(app, web)
    assert web.engine is not None
    web.engine.dispose()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A server that everyone signs in to."""
    with make_site(tmp_path / "data") as made:
        yield made


@pytest.fixture(name="make_site")
def make_site_fixture() -> Any:
    return make_site
