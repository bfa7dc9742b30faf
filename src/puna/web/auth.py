"""Authentication: who sends a request. All routes of all products take this one path.

A key is sent as `Authorization: Bearer KEY`: one from the key file, or an account's API key. A browser that has signed
in sends a cookie with the token of its session. Where nobody must sign in, everyone is the user `local`.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request

from puna.web.accounts.key_file import KeyFile
from puna.web.accounts.sessions import COOKIE
from puna.web.accounts.store import LOCAL, Accounts
from puna.web.csrf import from_own_page
from puna.web.errors import ApiError
from puna.web.settings import WebSettings


@dataclass(frozen=True)
class Identity:
    """The sender of a request.

    id: what rows of theirs carry. session: the id of their session, if they have one.

    carrier: for a key, whether it is from the key file ("key file") or an account's ("api key").
    """

    id: str
    name: str
    role: str
    session: str | None = None
    carrier: str = ""


ANYONE = Identity(LOCAL, LOCAL, "owner")


class Authenticator:
    """Identifies requests. accounts: None where there is no database, only the key file."""

    def __init__(self, settings: WebSettings, key_file: KeyFile, accounts: Accounts | None) -> None:
        self._settings, self._key_file, self._accounts = settings, key_file, accounts

    @property
    def required(self) -> bool:
        """Whether a request must carry a key or a session."""
        if self._key_file:
            return True
        if self._accounts is None:
            return False
        if self._settings.accounts is not None:
            return self._settings.accounts
        return self._settings.reachable or self._accounts.has_owner

    async def identify(self, request: HTTPConnection) -> Identity:
        """The sender of a request. Raises ApiError 401."""
        if not self.required:
            return ANYONE
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            found = await self.of_key(key.strip())
            if found is None:
                raise _unauthorized("This API key is not known.")
            return found
        cookie = request.cookies.get(COOKIE)
        if cookie and self._accounts is not None and from_own_page(request):
            known = await run_in_threadpool(self._accounts.credentials.of_cookie, cookie)
            if known is not None:
                account, session = known
                return Identity(**account, session=session)
        raise _unauthorized("An API key is needed: send the header Authorization: Bearer KEY.")

    async def of_key(self, key: str) -> Identity | None:
        """Whose key this is, or None."""
        name = self._key_file.owner(key)
        account: dict[str, Any] | None
        if self._accounts is None:
            return None if name is None else Identity(name, name, "creator", carrier="key file")
        carrier = "api key" if name is None else "key file"
        if name is not None:
            account = await run_in_threadpool(self._accounts.credentials.of_name, name)
        else:
            account = await run_in_threadpool(self._accounts.credentials.of_key, key)
        return None if account is None else Identity(**account, carrier=carrier)


async def identity(request: Request) -> Identity:
    """FastAPI dependency: the sender. Raises ApiError 401."""
    authenticator: Authenticator = request.app.state.web.auth
    return await authenticator.identify(request)


async def user(who: Annotated[Identity, Depends(identity)]) -> str:
    """FastAPI dependency: the sender's id, which the rows they own carry. Raises ApiError 401."""
    return who.id


async def owner(who: Annotated[Identity, Depends(identity)]) -> Identity:
    """FastAPI dependency: the sender, who must be an owner. Raises ApiError 401 or 403."""
    if who.role != "owner":
        raise ApiError(403, "Only an owner may do this.", code="owner_only")
    return who


Who = Annotated[Identity, Depends(identity)]
User = Annotated[str, Depends(user)]
Owner = Annotated[Identity, Depends(owner)]


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
