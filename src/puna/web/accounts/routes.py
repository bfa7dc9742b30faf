"""Signing in and out, accepting invitations, and one's own password, sessions and keys."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import Field, model_validator
from starlette.concurrency import run_in_threadpool

from puna.web import pages
from puna.web.access import owned, public, signed_in
from puna.web.accounts.sessions import COOKIE, SESSION_SECONDS
from puna.web.accounts.store import LOCAL, Accounts, fold
from puna.web.auth import Authenticator, User, Who
from puna.web.csrf import same_origin
from puna.web.errors import ApiError
from puna.web.request_body import Body, read_body

router = APIRouter(dependencies=[Depends(same_origin)], include_in_schema=False)


def accounts_of(request: Request) -> Accounts:
    """FastAPI dependency: the accounts of this server."""
    accounts: Accounts = request.app.state.web.accounts
    return accounts


AccountsDep = Annotated[Accounts, Depends(accounts_of)]


class SignIn(Body):
    """Either an API key, or a name and a password."""

    key: str | None = Field(default=None, min_length=1, max_length=1000)
    name: str = Field(default="", max_length=200)
    password: str = Field(default="", max_length=1000)

    @model_validator(mode="after")
    def _complete(self) -> "SignIn":
        if self.key is None and not (self.name and self.password):
            raise ValueError("give a key, or a name and a password.")
        return self


class Token(Body):
    """The token of an invitation's link."""

    token: str = Field(min_length=1, max_length=200)


class Acceptance(Token):
    """A new account: its name and password.

    The name is not used when the link is for an existing account.
    """

    name: str = Field(default="", max_length=200)
    password: str = Field(max_length=1000)


class PasswordChange(Body):
    current: str = Field(max_length=1000)
    new: str = Field(max_length=1000)


class NewKey(Body):
    label: str = Field(min_length=1, max_length=100)


# -- pages -----------------------------------------------------------------------------------------------------------


@router.get("/account")
@router.get("/account/invitation")
@public
def account_page(request: Request) -> HTMLResponse:
    """The page of accounts. It shows what its address and the session allow."""
    depth = int(request.url.path.endswith("/invitation"))
    return pages.page(pages.STATIC / "account.html", depth=depth)


# -- signing in and out ----------------------------------------------------------------------------------------------


@router.post("/app/login")
@public
async def sign_in(request: Request, response: Response, accounts: AccountsDep) -> dict[str, Any]:
    """Start a session for a key, or a name and password.

    Raises ApiError 401, and 429 after many failures.
    """
    web = request.app.state.web
    auth: Authenticator = web.auth
    if not auth.required:
        return {"user": LOCAL}
    given = await read_body(request, SignIn)
    attempt = _attempt(request, "key" if given.key is not None else f"name {fold(given.name)}")
    web.throttle.check(attempt)
    found: dict[str, Any] | None
    if given.key is not None:
        known = await auth.of_key(given.key.strip())
        carrier = "" if known is None else known.carrier
        found = None if known is None else {"id": known.id, "name": known.name}
    else:
        carrier = "password"
        found = await run_in_threadpool(accounts.sign_in, given.name, given.password)
    if found is None:
        web.throttle.failed(attempt)
        if given.key is not None:
            raise ApiError(401, "This key is not known here.", code="invalid_api_key")
        raise ApiError(401, "The name or the password is wrong.", code="wrong_password")
    await start_session(request, response, accounts, found["id"], carrier)
    return {"user": found["name"]}


@router.post("/app/logout")
@public
async def sign_out(request: Request, response: Response, accounts: AccountsDep) -> dict[str, Any]:
    """End this session."""
    if cookie := request.cookies.get(COOKIE):
        known = await run_in_threadpool(accounts.credentials.of_cookie, cookie)
        if known is not None:
            await run_in_threadpool(accounts.credentials.revoke, known[0]["id"], known[1])
    response.delete_cookie(COOKIE, path=_cookie_path(request), httponly=True, samesite="strict")
    return {}


@router.get("/app/sign-in")
@public
async def ways_to_sign_in(request: Request, accounts: AccountsDep) -> dict[str, Any]:
    """How one can sign in here: `password` once there are accounts with one, `key` always."""
    return {"required": request.app.state.web.auth.required, "password": accounts.has_owner}


@router.post("/app/invitations/look-up")
@public
async def look_up(request: Request, accounts: AccountsDep) -> dict[str, Any]:
    """What an invitation is for. Raises ApiError 404 when its link is no longer valid."""
    given = await read_body(request, Token)
    return await run_in_threadpool(accounts.look_up, given.token)


@router.post("/app/invitations/accept")
@public
async def accept(request: Request, response: Response, accounts: AccountsDep) -> dict[str, Any]:
    """Use an invitation, and sign in. A new password ends the account's other sessions."""
    given = await read_body(request, Acceptance)
    account = await run_in_threadpool(accounts.accept, given.token, given.name, given.password)
    await run_in_threadpool(accounts.credentials.revoke_all, account["id"])
    await start_session(request, response, accounts, account["id"], "password")
    return {"user": account["name"], "role": account["role"]}


# -- one's own account -----------------------------------------------------------------------------------------------


@router.get("/app/account")
@signed_in
async def own_account(request: Request, accounts: AccountsDep, who: Who) -> dict[str, Any]:
    """The account that is signed in.

    Without one (where nobody must sign in), only the name and role.
    """
    shown: dict[str, Any] = {"id": who.id, "name": who.name, "role": who.role, "has_password": False}
    if request.app.state.web.auth.required:
        shown |= await run_in_threadpool(accounts.get, who.id)
    return {**shown, "session": who.session, "accounts": request.app.state.web.auth.required}


@router.post("/app/account/password")
@signed_in
async def change_password(request: Request, accounts: AccountsDep, who: Who) -> dict[str, Any]:
    """Replace one's password. All other sessions end."""
    given = await read_body(request, PasswordChange)
    web = request.app.state.web
    attempt = _attempt(request, f"account {who.id}")
    web.throttle.check(attempt)
    try:
        await run_in_threadpool(accounts.set_password, who.id, given.current, given.new)
    except ApiError as error:
        if error.code == "wrong_password":
            web.throttle.failed(attempt)
        raise
    await run_in_threadpool(accounts.credentials.revoke_all, who.id, but=who.session)
    return {}


@router.get("/app/account/sessions")
@signed_in
async def sessions(accounts: AccountsDep, who: Who) -> dict[str, Any]:
    """One's sessions; `current` is the one that asks."""
    return {"sessions": await run_in_threadpool(accounts.credentials.sessions, who.id), "current": who.session}


@router.delete("/app/account/sessions/{session}")
@owned
async def revoke_session(session: str, accounts: AccountsDep, user: User) -> dict[str, Any]:
    """End one of one's sessions."""
    await run_in_threadpool(accounts.credentials.revoke, user, session)
    return {"revoked": session}


@router.delete("/app/account/sessions")
@signed_in
async def revoke_other_sessions(accounts: AccountsDep, who: Who) -> dict[str, Any]:
    """End all of one's sessions but this one."""
    await run_in_threadpool(accounts.credentials.revoke_all, who.id, but=who.session)
    return {}


@router.get("/app/account/keys")
@signed_in
async def keys(accounts: AccountsDep, user: User) -> dict[str, Any]:
    """One's API keys, by their first characters."""
    return {"keys": await run_in_threadpool(accounts.credentials.keys, user)}


@router.post("/app/account/keys")
@signed_in
async def add_key(request: Request, accounts: AccountsDep, user: User) -> dict[str, Any]:
    """A new API key. It is shown this once."""
    if not request.app.state.web.auth.required:
        raise ApiError(409, "Nobody signs in to this server, so no key is needed.")
    given = await read_body(request, NewKey)
    return await run_in_threadpool(accounts.credentials.add_key, user, given.label)


@router.delete("/app/account/keys/{key}")
@owned
async def remove_key(key: str, accounts: AccountsDep, user: User) -> dict[str, Any]:
    """Delete one of one's API keys."""
    await run_in_threadpool(accounts.credentials.remove_key, user, key)
    return {"removed": key}


def _attempt(request: Request, at: str) -> str:
    return f"{request.client.host if request.client else ''} {at}"


async def start_session(request: Request, response: Response, accounts: Accounts, account: str, carrier: str) -> None:
    """Start a session and set its cookie, which no script can read."""
    settings = request.app.state.web.settings
    agent = request.headers.get("user-agent", "")
    token = await run_in_threadpool(accounts.credentials.begin, account, carrier=carrier, agent=agent)
    response.set_cookie(
        COOKIE,
        token,
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https" or settings.public_origin.startswith("https:"),
        path=_cookie_path(request),
    )


def _cookie_path(request: Request) -> str:
    return request.app.state.web.settings.root_path or "/"
