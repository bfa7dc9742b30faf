"""The outermost middleware: allowed host names, and security headers on every response.

A page of another site can point its own name at this machine and have a browser talk to it as if it were that site (DNS
rebinding). Such a request carries the site's name, so only known names are answered. A numeric address cannot be
rebound, so it is accepted when the server listens on all addresses.
"""

import ipaddress
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.web.errors import ApiError
from puna.web.responses import error_response
from puna.web.settings import WebSettings

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
# Responses are data: a browser that is tricked into showing one must find nothing to run. Pages set their own policy.
_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_EVERYWHERE = ("0.0.0.0", "::", "")
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")

Count = Callable[[str, str, str], None]
"""Called once a response with its route, method and status."""


class SecurityMiddleware:
    """The outermost application. count: told of every response."""

    def __init__(self, app: ASGIApp, settings: WebSettings, count: Count = lambda route, method, status: None) -> None:
        self._app, self._count = app, count
        self._everywhere = settings.host in _EVERYWHERE
        names = {"localhost", "127.0.0.1", "::1", *settings.allowed_hosts}
        names |= {socket.gethostname().lower()} if self._everywhere else {settings.host}
        self._names = {name.strip("[]").lower() for name in names}
        # With CORS, a page elsewhere may read the API's responses, so the browser must be allowed to hand them over.
        self._headers = _HEADERS[:-1] if settings.cors_origins else _HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message.get("headers", ())}
                more = [pair for pair in (*self._headers, _POLICY) if pair[0] not in present]
                message["headers"] = [*message.get("headers", ()), *more]
                # Methods are the client's to invent, and a metric's labels must be few.
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._count(getattr(scope.get("route"), "path", "other"), method, str(message["status"]))
            await send(message)

        host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
        if not self._known(host):
            refused = ApiError(
                400,
                "This server does not answer to that host name. Allow it with --allowed-host NAME.",
                code="unknown_host",
            )
            await error_response(refused)(scope, receive, secured)
            return
        await self._app(scope, receive, secured)

    def _known(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if "*" in self._names or name in self._names:
            return True
        return self._everywhere and _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
