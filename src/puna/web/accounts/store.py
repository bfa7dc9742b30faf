"""Accounts and invitations in the database.

All functions are synchronous and short; routes call them on a thread. They return plain dictionaries, ready for JSON,
and never a password's hash.
"""

import time
import unicodedata
import uuid
from typing import Any

from sqlalchemy import Engine, delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from puna.core.errors import PunaError
from puna.web.accounts.key_file import KeyFile
from puna.web.accounts.passwords import digest, hash_password, new_token, verify_password
from puna.web.accounts.schema import ROLES, Account, Invitation, Role
from puna.web.accounts.sessions import Credentials
from puna.web.errors import ApiError, MissingError

LOCAL = "local"
"""The user where nobody signs in. The first owner gets this id, and so what was stored before there were accounts."""
INVITATION_SECONDS = 7 * 24 * 3600
OWNER_LINK_SECONDS = 24 * 3600


class Accounts:
    """The accounts of a database. credentials: their sessions and API keys."""

    def __init__(self, engine: Engine, key_file: KeyFile) -> None:
        self._engine = engine
        self.credentials = Credentials(engine, key_file)
        self._enter(key_file)
        with Session(engine) as session:
            self.has_owner = _owners(session) > 0
            """Whether somebody has used the owner's link."""

    # -- accounts ----------------------------------------------------------------------------------------------------

    def all(self) -> list[dict[str, Any]]:
        """All accounts, the oldest first."""
        with Session(self._engine) as session:
            rows = session.scalars(select(Account).order_by(Account.created, Account.id))
            return [_account(row) for row in rows]

    def get(self, id: str) -> dict[str, Any]:
        """One account. Raises MissingError."""
        with Session(self._engine) as session:
            return _account(_existing(session, id))

    def change(self, id: str, *, role: Role | None = None, disabled: bool | None = None) -> dict[str, Any]:
        """Change the role, or disable or enable an account.

        Raises MissingError, and ApiError for the last owner.
        """
        with Session(self._engine) as session, session.begin():
            row = _existing(session, id)
            was_owner = row.role == "owner" and not row.disabled
            row.role = role or row.role
            row.disabled = row.disabled if disabled is None else disabled
            session.flush()
            if was_owner and not _owners(session):
                raise ApiError(409, "This is the last owner. Make someone else an owner first.", code="last_owner")
            return _account(row)

    def sign_in(self, name: str, password: str) -> dict[str, Any] | None:
        """The account of this name and password, or None."""
        with Session(self._engine) as session:
            row = session.scalars(select(Account).where(Account.folded == fold(name))).first()
            right = verify_password(row.password if row else None, password)
            return _account(row) if row is not None and right and not row.disabled else None

    def set_password(self, id: str, current: str, new: str) -> None:
        """Replace a password. Raises MissingError, and ApiError 403 when `current` is wrong."""
        with Session(self._engine) as session, session.begin():
            row = _existing(session, id)
            if not verify_password(row.password, current):
                raise ApiError(403, "The current password is wrong.", param="current", code="wrong_password")
            row.password = hash_password(new, name=row.name)

    def _enter(self, key_file: KeyFile) -> None:
        """Give every name in the key file an account.

        The name is also the id, so what was stored for that name before there were accounts stays its own.
        """
        with Session(self._engine) as session, session.begin():
            for name in sorted(key_file.names):
                if session.get(Account, name) is not None:
                    continue
                if session.scalars(select(Account).where(Account.folded == fold(name))).first():
                    raise PunaError(
                        f"The key file names '{name}', which is the name of another account.",
                        "Give that key another name.",
                    )
                session.add(_new(name, name, "creator", None))
                session.flush()

    # -- invitations -------------------------------------------------------------------------------------------------

    def invite(self, role: Role, *, inviter: str | None, seconds: float = INVITATION_SECONDS) -> dict[str, Any]:
        """A one-time link to a new account.

        The result's `token` is not stored and cannot be shown again.
        """
        return self._invite(role, None, inviter, seconds)

    def invite_back(self, id: str, *, inviter: str | None) -> dict[str, Any]:
        """A one-time link to a new password for an existing account. Raises MissingError."""
        account = self.get(id)
        return self._invite(account["role"], id, inviter, INVITATION_SECONDS)

    def owner_link(self) -> str:
        """The token of a link by which the first owner makes their account.

        Earlier ones stop working.
        """
        with Session(self._engine) as session, session.begin():
            session.execute(delete(Invitation).where(Invitation.role == "owner", Invitation.inviter.is_(None)))
        return str(self.invite("owner", inviter=None, seconds=OWNER_LINK_SECONDS)["token"])

    def invitations(self) -> list[dict[str, Any]]:
        """Invitations that nobody has used and that have not expired, the newest first."""
        with Session(self._engine) as session:
            wanted = select(Invitation).where(Invitation.expires > time.time()).order_by(Invitation.created.desc())
            return [_invitation(row) for row in session.scalars(wanted)]

    def withdraw(self, id: str) -> None:
        """Make an invitation unusable. Raises MissingError."""
        with Session(self._engine) as session, session.begin():
            row = session.get(Invitation, id)
            if row is None:
                raise MissingError
            session.delete(row)

    def look_up(self, token: str) -> dict[str, Any]:
        """What an invitation is for: its role, and the name when it is for an existing account.

        Raises ApiError 404.
        """
        with Session(self._engine) as session:
            row = _open_invitation(session, token)
            known = session.get(Account, row.account) if row.account else None
            return {"role": row.role, "name": known.name if known else None}

    def accept(self, token: str, name: str, password: str) -> dict[str, Any]:
        """Use an invitation once; returns the account.

        Raises ApiError 404 for the link, 409 for a name in use.
        """
        with Session(self._engine) as session:
            try:
                with session.begin():
                    row = _open_invitation(session, token)
                    if row.account:
                        account = _existing(session, row.account)
                        account.password = hash_password(password, name=account.name)
                    else:
                        name = clean_name(name)
                        account = _new(self._new_id(session, row), name, row.role, hash_password(password, name=name))
                        session.add(account)
                    # Of two people who use one link at once, the second finds no row to delete.
                    if session.execute(delete(Invitation).where(Invitation.id == row.id)).rowcount != 1:  # type: ignore[attr-defined]
                        raise _bad_link()
                    session.flush()
                    made = _account(account)
            except IntegrityError:
                raise ApiError(409, f"The name '{name}' is in use.", param="name", code="name_in_use") from None
        self.has_owner = self.has_owner or made["role"] == "owner"
        return made

    def _new_id(self, session: Session, invitation: Invitation) -> str:
        first = invitation.role == "owner" and not _owners(session) and session.get(Account, LOCAL) is None
        return LOCAL if first else uuid.uuid4().hex

    def _invite(self, role: Role, account: str | None, inviter: str | None, seconds: float) -> dict[str, Any]:
        token, now = new_token(), time.time()
        row = Invitation(
            id=str(uuid.uuid4()),
            digest=digest(token),
            role=role,
            account=account,
            inviter=inviter,
            created=now,
            expires=now + seconds,
        )
        with Session(self._engine) as session, session.begin():
            session.add(row)
            session.flush()
            return {**_invitation(row), "token": token}


def fold(name: str) -> str:
    """A name as compared: without case, in one Unicode form."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def clean_name(name: str) -> str:
    """A name without surrounding space.

    Raises ApiError 400 when it is empty, too long or not printable.
    """
    name = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise ApiError(400, "A name has 1 to 64 printable characters.", param="name", code="bad_name")
    return name


def _new(id: str, name: str, role: str, password: str | None) -> Account:
    return Account(
        id=id, name=name, folded=fold(name), role=role, password=password, disabled=False, created=time.time()
    )


def _existing(session: Session, id: str) -> Account:
    row = session.get(Account, id)
    if row is None:
        raise MissingError
    return row


def _owners(session: Session) -> int:
    wanted = select(func.count()).select_from(Account).where(Account.role == "owner", Account.disabled.is_(False))
    return session.scalar(wanted) or 0


def _open_invitation(session: Session, token: str) -> Invitation:
    row = session.scalars(select(Invitation).where(Invitation.digest == digest(token))).first()
    if row is None or row.expires < time.time():
        raise _bad_link()
    return row


def _bad_link() -> ApiError:
    return ApiError(404, "This link was already used, or has expired. Ask for a new one.", code="bad_invitation")


def _account(row: Account) -> dict[str, Any]:
    assert row.role in ROLES
    return {
        "id": row.id,
        "name": row.name,
        "role": row.role,
        "disabled": row.disabled,
        "has_password": row.password is not None,
        "created": row.created,
    }


def _invitation(row: Invitation) -> dict[str, Any]:
    return {
        "id": row.id,
        "role": row.role,
        "account": row.account,
        "inviter": row.inviter,
        "created": row.created,
        "expires": row.expires,
    }
