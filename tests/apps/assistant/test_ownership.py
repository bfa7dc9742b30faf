"""Who may use which route: every route of the application, asked by four kinds of people.

The routes come from the application itself. A new one fails here until it declares who may use it (puna.web.access),
and until this file knows what its path's parameters may be.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from live_site import Site, site
from scripted import Scripted

from puna.web.access import Access, access_of

PASSWORD = "a long enough password"


@dataclass
class Person:
    """A signed-in browser, and what this person has."""

    api: httpx.Client
    things: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    backend = Scripted("fast", lambda text: f"You wrote: {text}.")
    with site([backend], tmp_path_factory.mktemp("data"), accounts=True) as made:
        yield made


def person(here: Site, name: str, role: Any = "member") -> Person:
    """A new account, with one of everything that an account can have."""
    accounts = here.app.state.web.accounts
    token = accounts.owner_link() if role == "owner" else accounts.invite(role, inviter=None)["token"]
    api = here.client()
    body = {"token": token, "name": name, "password": PASSWORD}
    assert api.post("/app/invitations/accept", json=body).status_code == 200
    made = Person(api)
    things = made.things
    things["conversation"] = api.post("/app/conversations", json={}).json()["id"]
    api.post(f"/app/conversations/{things['conversation']}/messages", json={"content": "secret", "parent": None})
    whole = api.get(f"/app/conversations/{things['conversation']}").json()
    things["message"] = whole["messages"][-1]["id"]
    compared = api.post("/app/compare", json={"prompt": "secret", "models": ["fast", "fast"]}).text
    things["comparison"] = compared.partition('"id":"')[2].partition('"')[0]
    things["session"] = api.get("/app/account/sessions").json()["sessions"][0]["id"]
    things["key"] = api.post("/app/account/keys", json={"label": "secret"}).json()["id"]
    things["account"] = api.get("/app/account").json()["id"]
    things["response"] = api.post("/v1/responses", json={"input": "secret"}).json()["id"]
    things["invitation"] = accounts.invite("member", inviter=None)["id"]
    return made


# What a parameter of a path stands for: (prefix of the path, parameter) -> kind of thing.
PARAMETERS = {
    ("/app/conversations/", "id"): "conversation",
    ("/app/conversations/", "message"): "message",
    ("/app/compare/", "id"): "comparison",
    ("/app/account/sessions/", "session"): "session",
    ("/app/account/keys/", "key"): "key",
    ("/app/accounts/", "account"): "account",
    ("/app/invitations/", "invitation"): "invitation",
    ("/v1/responses/", "id"): "response",
    ("/v1/models/", "name:path"): "model",
}
# Bodies with which a route gets as far as looking at whose a thing is. Others are sent {}.
BODIES: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
    "send": lambda things: {"content": "x", "parent": None},
    "show": lambda things: {"message": things["message"]},
    "judge": lambda things: {"better": "a"},
    "change": lambda things: {"title": "x"},
    "feedback": lambda things: {"message": things["message"], "rating": 1},
}


def routes_of(app: Any) -> Iterator[tuple[str, str, Any]]:
    """(method, path, endpoint) of every route, also those of routers within; static files have none."""

    def walk(routes: Any) -> Iterator[Any]:
        for route in routes:
            if hasattr(route, "methods"):
                yield route
            elif not hasattr(route, "app") or hasattr(route, "original_router"):
                yield from walk(getattr(getattr(route, "original_router", route), "routes", None) or ())

    for route in walk(app.routes):
        if route.path == "/openapi.json":
            continue  # FastAPI's own, the public description of the API
        for method in sorted(route.methods - {"HEAD"}):
            yield method, route.path, route.endpoint


def filled(path: str, things: dict[str, str]) -> str:
    """A path with the ids of somebody's things in it."""
    for (prefix, name), kind in PARAMETERS.items():
        if path.startswith(prefix):
            path = path.replace(f"{{{name}}}", things.get(kind, "fast"))
    assert "{" not in path, f"{path}: say in PARAMETERS what this parameter may be"
    return path


def test_every_route_says_who_may_use_it(here: Site) -> None:
    found = list(routes_of(here.app))
    missing = [f"{method} {path}" for method, path, endpoint in found if access_of(endpoint) is None]
    assert missing == [], "declare these with puna.web.access"
    assert len(found) > 40
    assert {access_of(endpoint) for _, _, endpoint in found} == {"public", "signed in", "owned", "owner"}


# What each kind of person gets. True: something other than 401, 403 and 404.
EXPECTED: dict[Access, dict[str, int | bool]] = {
    "public": {"nobody": True, "other": True, "its owner": True, "account owner": True},
    "signed in": {"nobody": 401, "other": True, "its owner": True, "account owner": True},
    "owned": {"nobody": 401, "other": 404, "its owner": True, "account owner": 404},
    "owner": {"nobody": 401, "other": 403, "its owner": 403, "account owner": True},
}


def test_every_route_for_everyone(here: Site) -> None:
    boss = person(here, "boss", "owner")
    other = person(here, "other")
    spare, nobody = person(here, "spare"), here.client()
    for number, (method, path, endpoint) in enumerate(routes_of(here.app)):
        access = access_of(endpoint)
        assert access is not None
        fresh = "{" in path or method == "DELETE" or path == "/app/logout"
        things = person(here, f"owner of {number}") if fresh else spare
        body = BODIES.get(endpoint.__name__, lambda things: {})(things.things)
        target = filled(path, things.things)
        askers = {"nobody": nobody, "other": other.api, "account owner": boss.api, "its owner": things.api}
        expectations = EXPECTED[access]
        for who in sorted(askers, key=lambda who: expectations[who] is True):  # who may do it, last
            expected, api = expectations[who], askers[who]
            answer = api.request(method, target, json=None if method == "GET" else body)
            case = (method, path, who, answer.status_code, answer.text[:200])
            if expected is True:
                assert answer.status_code not in (401, 403, 404), case
                assert answer.status_code < 500, case
            else:
                assert answer.status_code == expected, case
                assert "secret" not in answer.text, case
        if path == "/app/logout":  # it ended the sessions of those who asked
            for one, name in ((other, "other"), (boss, "boss")):
                assert one.api.post("/app/login", json={"name": name, "password": PASSWORD}).status_code == 200


@pytest.mark.parametrize("carrier", ["cookie", "bearer"])
def test_every_carrier_of_a_credential_is_the_same_person(here: Site, carrier: str) -> None:
    """A key is no way around what a session may not see, and the other way round."""
    ana, bo = person(here, f"ana by {carrier}"), person(here, f"bo by {carrier}")
    api = bo.api
    if carrier == "bearer":
        key = bo.api.post("/app/account/keys", json={"label": "x"}).json()["key"]
        api = here.client(key)
    path = f"/app/conversations/{ana.things['conversation']}"
    assert api.get(path).status_code == 404
    assert api.get(f"/v1/responses/{ana.things['response']}").status_code == 404
    assert api.get(f"/app/conversations/{bo.things['conversation']}").status_code == 200
    for name in ("x-api-key", "api-key", "x-forwarded-user", "remote-user"):
        with httpx.Client(base_url=here.url, trust_env=False, headers={name: "boss"}) as forged:
            assert forged.get(path).status_code == 401
