"""The outermost middleware: allowed host names, the root path, HEAD, and security headers on every response.

A page of another site can point its own name at this machine and have a browser talk to it as if it were that site (DNS
rebinding). Such a request carries the site's name, so only known names are answered. A numeric address cannot be
rebound, so it is accepted when the server listens on all addresses.
"""

import ipaddress
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.web.errors import ApiError
from puna.web.responses import error_response
from puna.web.settings import WebSettings

SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
# Responses are data: a browser that is tricked into showing one must find nothing to run. Pages set their own policy.
_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_EVERYWHERE = ("0.0.0.0", "::", "")
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
HEALTH = ("/health", "/ready", "/health/progress")
"""Routes that load balancers ask, some of them in HTTP/1.0 and without a Host header."""

Count = Callable[[str, str, str], None]
"""Called once a response with its route, method and status."""


class SecurityMiddleware:
    """The outermost application. count: told of every response."""

    def __init__(self, app: ASGIApp, settings: WebSettings, count: Count = lambda route, method, status: None) -> None:
        self._app, self._count = app, count
        self._root = settings.root_path
        self._everywhere = settings.host in _EVERYWHERE
        names = {"localhost", "127.0.0.1", "::1", *settings.allowed_hosts}
        names |= {socket.gethostname().lower()} if self._everywhere else {settings.host}
        if settings.public_origin:
            names.add(urlsplit(settings.public_origin).hostname or "")
        self._names = {name.strip("[]").lower() for name in names}
        # With CORS, a page elsewhere may read the API's responses, so the browser must be allowed to hand them over.
        self._headers = SECURITY_HEADERS[:-1] if settings.cors_origins else SECURITY_HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        scope = self._rooted(scope)
        if method == "HEAD":
            scope, head = {**scope, "method": "GET"}, _Head(receive, send)
            receive, send = head.receive, head.send

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message.get("headers", ())}
                more = [pair for pair in (*self._headers, _POLICY) if pair[0] not in present]
                message["headers"] = [*message.get("headers", ()), *more]
                # Methods are the client's to invent, and a metric's labels must be few.
                known = method if method in _METHODS else "other"
                self._count(getattr(scope.get("route"), "path", "other"), known, str(message["status"]))
            await send(message)

        refused = self._refusal(scope)
        if refused is not None:
            await error_response(refused)(scope, receive, secured)
        elif self._root and scope["path"] == self._root:
            # The page's addresses are relative, so its own must end with a slash.
            await RedirectResponse(f"{self._root}/", 308)(scope, receive, secured)
        else:
            await self._app(scope, receive, secured)

    def _rooted(self, scope: Scope) -> Scope:
        """The scope with the root path in its path, whether or not the proxy has removed it (ASGI wants it there)."""
        root, path = self._root, scope["path"]
        if not root:
            return scope
        if path != root and not path.startswith(f"{root}/"):
            scope = {**scope, "path": root + path, "raw_path": root.encode() + scope.get("raw_path", path.encode())}
        return {**scope, "root_path": root}

    def _refusal(self, scope: Scope) -> ApiError | None:
        """What is wrong with the request's host name (RFC 9112, 3.2, and unknown names)."""
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) > 1:
            return ApiError(400, "The request has more than one Host header.", code="invalid_host")
        if not hosts and scope.get("http_version") == "1.0" and scope["path"].removeprefix(self._root) in HEALTH:
            return None
        if self._known(hosts[0] if hosts else ""):
            return None
        message = "This server does not answer to that host name. Allow it with --allowed-host NAME."
        return ApiError(400, message, code="unknown_host")

    def _known(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if "*" in self._names or name in self._names:
            return True
        return self._everywhere and _is_address(name)


class _Head:
    """Answers HEAD with what GET answers, without its body (RFC 9110, 9.3.2)."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send, self._done = receive, send, False

    async def send(self, message: Message) -> None:
        """Send the status and headers, and end there: a stream would go on."""
        if message["type"] == "http.response.start":
            await self._send(message)
            await self._send({"type": "http.response.body", "body": b""})
            self._done = True

    async def receive(self) -> Message:
        """The request; once it is answered, the client has gone."""
        return {"type": "http.disconnect"} if self._done else await self._receive()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
