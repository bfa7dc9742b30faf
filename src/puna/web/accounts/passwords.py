"""Password hashing with argon2id, and secret tokens.

The parameters are argon2-cffi's defaults (RFC 9106, low-memory profile: 64 MiB, 3 passes).
"""

import hashlib
import secrets
import threading
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from puna.web.errors import ApiError

LEAST, MOST = 8, 1000
_HASHER = PasswordHasher()
# Each hash takes 64 MiB: a crowd at the sign-in form must not take all memory, nor all cores from the engine.
_PLACES = threading.BoundedSemaphore(2)


def hash_password(password: str, *, name: str) -> str:
    """Return the hash of a new password.

    Raises ApiError 400 when it is too short, or the name itself.
    """
    if not LEAST <= len(password) <= MOST:
        raise ApiError(400, f"A password has {LEAST} to {MOST} characters.", param="password", code="weak_password")
    if password.casefold() == name.casefold():
        raise ApiError(400, "The password must not be the name.", param="password", code="weak_password")
    with _PLACES:
        return _HASHER.hash(password)


def verify_password(hashed: str | None, password: str) -> bool:
    """Whether this is the password.

    Without a hash it takes as long, so names cannot be told apart by time.
    """
    with _PLACES:
        try:
            return _HASHER.verify(hashed or _nobody(), password) and hashed is not None
        except (VerificationError, InvalidHashError):
            return False


@cache
def _nobody() -> str:
    """A hash that no password has."""
    return _HASHER.hash(secrets.token_hex(16))


def new_token() -> str:
    """A random token for a cookie, key or link: 256 bits, safe in URLs."""
    return secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """What is stored of a token. Tokens are random, so a fast hash is enough."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
