"""Who is asking. There is one way to find out, `user`, and every route that needs to know goes it.

A key comes as `Authorization: Bearer KEY`, or with the cookie that the page sets when someone signs in. The cookie
holds no key: it names the user and is signed with a secret that only this server knows.
"""

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from puna.serve.errors import ApiError

if TYPE_CHECKING:
    from puna.serve.server import Server

COOKIE = "puna_session"
SESSION_SECONDS = 30 * 24 * 3600
LOCAL = "local"
"""Who asks where nobody needs a key."""


class Keys:
    """The keys of a server. owners: key -> name."""

    def __init__(self, owners: Mapping[str, str]) -> None:
        # Digests are equally long, so comparing them tells nothing of a key's length either.
        self._owners = [(_digest(key), name) for key, name in owners.items()]
        self._secret = secrets.token_bytes(32)

    def sign_with(self, secret: bytes) -> None:
        """Sign cookies with a secret that outlives this process."""
        self._secret = secret

    @property
    def wanted(self) -> bool:
        """Whether a key is needed at all."""
        return bool(self._owners)

    def owner(self, key: str) -> str | None:
        """Whose key this is. All keys are compared, in the same time whatever is given."""
        given, found = _digest(key), None
        for digest, name in self._owners:
            if hmac.compare_digest(given, digest):
                found = name
        return found

    def session(self, name: str) -> str:
        """The value of the cookie of a user who has shown a key."""
        head = base64.urlsafe_b64encode(f"{int(time.time()) + SESSION_SECONDS}:{name}".encode()).decode()
        return f"{head}.{self._sign(head)}"

    def session_owner(self, value: str) -> str | None:
        """Whose cookie this is; None when it is not ours or too old."""
        head, _, signature = value.rpartition(".")
        if not hmac.compare_digest(self._sign(head).encode(), signature.encode("utf-8", "replace")):
            return None
        until, _, name = base64.urlsafe_b64decode(head).decode().partition(":")
        known = any(owner == name for _, owner in self._owners)  # whose key was taken away has no session either
        return name if known and int(until) > time.time() else None

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, text.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def user(request: HTTPConnection) -> str:
    """The name of who asks; LOCAL where there are no keys. Raises ApiError 401."""
    server: Server = request.app.state.puna
    keys = server.keys
    if not keys.wanted:
        return LOCAL
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        name = keys.owner(key.strip())
        if name is None:
            raise _unauthorized("This API key is not known.")
        return name
    cookie = request.cookies.get(COOKIE)
    if cookie and _same_origin(request):
        name = keys.session_owner(cookie)
        if name is not None:
            return name
    raise _unauthorized("An API key is needed: send the header Authorization: Bearer KEY.")


def _same_origin(request: HTTPConnection) -> bool:
    """Whether a browser says that one of our own pages asks; cookies travel with requests of others too."""
    origin = request.headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc == request.headers.get("host")
    return request.headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
