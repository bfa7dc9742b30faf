"""The outermost layer: by which names the server may be called, what every answer carries, and the count of answers.

A page of another site can point its own name at this machine and have a browser talk to it as if it were that site (DNS
rebinding). Such a request carries the site's name, so only names that we know are answered; an address in numbers
cannot be rebound and is all right wherever the server listens on all of them.
"""

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.serve.answer import error_response
from puna.serve.errors import ApiError
from puna.serve.metrics import Metrics
from puna.serve.settings import Settings

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
# Answers are data; a browser that is led to show one must find nothing in it to run. The page sets its own.
_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_EVERYWHERE = ("0.0.0.0", "::", "")


class Guard:
    """The outermost application."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._everywhere = settings.host in _EVERYWHERE
        names = {"localhost", "127.0.0.1", "::1", *settings.allowed_hosts}
        names |= {socket.gethostname().lower()} if self._everywhere else {settings.host}
        self._names = {name.strip("[]").lower() for name in names}
        # Who opened the API to a page elsewhere wants its browser to hand the answers over.
        self._headers = _HEADERS[:-1] if settings.cors_origins else _HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message.get("headers", ())}
                more = [pair for pair in (*self._headers, _POLICY) if pair[0] not in present]
                message["headers"] = [*message.get("headers", ()), *more]
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.http.labels(route, _method(scope), str(message["status"])).inc()
            await send(message)

        host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
        if not self._known(host):
            refused = ApiError(
                400,
                "This server is not called by that name. Start it with --allowed-host NAME.",
                code="unknown_host",
            )
            await error_response(refused)(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)

    def _known(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if "*" in self._names or name in self._names:
            return True
        return self._everywhere and _is_address(name)


def _method(scope: Scope) -> str:
    """Methods are the client's to invent, and a label's values must be few."""
    known = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
    return scope["method"] if scope["method"] in known else "other"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
