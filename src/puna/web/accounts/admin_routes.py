"""Managing accounts: invitations, roles, disabling accounts and ending their sessions."""

from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from puna.web.access import owner_only
from puna.web.accounts.routes import AccountsDep
from puna.web.accounts.schema import Role
from puna.web.auth import Owner
from puna.web.csrf import same_origin
from puna.web.request_body import Body, read_body

router = APIRouter(prefix="/app", dependencies=[Depends(same_origin)], include_in_schema=False)


class NewInvitation(Body):
    role: Role = "member"


class AccountChange(Body):
    """What to change; what is left out stays."""

    role: Role | None = None
    disabled: bool | None = Field(default=None, strict=True)


@router.get("/accounts")
@owner_only
async def list_accounts(accounts: AccountsDep, who: Owner) -> dict[str, Any]:
    """All accounts."""
    return {"accounts": await run_in_threadpool(accounts.all)}


@router.patch("/accounts/{account}")
@owner_only
async def change_account(account: str, request: Request, accounts: AccountsDep, who: Owner) -> dict[str, Any]:
    """Change an account's role, or disable or enable it.

    Disabling ends its sessions; its data stays.
    """
    given = await read_body(request, AccountChange)
    changed = await run_in_threadpool(accounts.change, account, role=given.role, disabled=given.disabled)
    if given.disabled:
        await run_in_threadpool(accounts.credentials.revoke_all, account)
    return changed


@router.delete("/accounts/{account}/sessions")
@owner_only
async def end_sessions(account: str, accounts: AccountsDep, who: Owner) -> dict[str, Any]:
    """Sign an account out everywhere."""
    await run_in_threadpool(accounts.get, account)
    await run_in_threadpool(accounts.credentials.revoke_all, account)
    return {}


@router.post("/accounts/{account}/password-link")
@owner_only
async def password_link(account: str, accounts: AccountsDep, who: Owner) -> dict[str, Any]:
    """A one-time link by which this account gets a new password."""
    return await run_in_threadpool(accounts.invite_back, account, inviter=await _known(accounts, who.id))


@router.get("/invitations")
@owner_only
async def invitations(accounts: AccountsDep, who: Owner) -> dict[str, Any]:
    """Invitations that are still open."""
    return {"invitations": await run_in_threadpool(accounts.invitations)}


@router.post("/invitations")
@owner_only
async def invite(request: Request, accounts: AccountsDep, who: Owner) -> dict[str, Any]:
    """A one-time link to a new account. Its token is shown this once."""
    given = await read_body(request, NewInvitation)
    return await run_in_threadpool(accounts.invite, given.role, inviter=await _known(accounts, who.id))


@router.delete("/invitations/{invitation}")
@owner_only
async def withdraw(invitation: str, accounts: AccountsDep, who: Owner) -> dict[str, Any]:
    """Withdraw an invitation."""
    await run_in_threadpool(accounts.withdraw, invitation)
    return {"withdrawn": invitation}


async def _known(accounts: AccountsDep, id: str) -> str | None:
    """The id if it is an account's: where nobody must sign in, the user `local` may be none."""
    known = await run_in_threadpool(accounts.all)
    return id if any(account["id"] == id for account in known) else None
