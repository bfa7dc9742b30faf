"""Sessions and API keys: what stands for a person after they have signed in.

Both can be revoked one by one.

The database holds only digests, so a copy of it lets nobody in.
"""

import time
import uuid
from typing import Any

from sqlalchemy import ColumnElement, Engine, delete, select
from sqlalchemy.orm import Session

from puna.web.accounts.key_file import KeyFile
from puna.web.accounts.passwords import digest, new_token
from puna.web.accounts.schema import Account, AccountKey, AccountSession
from puna.web.errors import ApiError, MissingError

COOKIE = "puna_session"
SESSION_SECONDS = 30 * 24 * 3600
USED_SECONDS = 300.0  # how exactly it is recorded when a session was last used
KEY_PREFIX = "puna-"
MOST_KEYS = 50


class Credentials:
    """The sessions and API keys of all accounts."""

    def __init__(self, engine: Engine, key_file: KeyFile) -> None:
        self._engine, self._key_file = engine, key_file

    # -- sessions ----------------------------------------------------------------------------------------------------

    def begin(self, account: str, *, carrier: str, agent: str) -> str:
        """Start a session; returns the cookie's value.

        carrier: password, api key or key file. agent: User-Agent.
        """
        token, now = new_token(), time.time()
        row = AccountSession(
            id=str(uuid.uuid4()),
            digest=digest(token),
            account=account,
            carrier=carrier,
            agent=agent[:300],
            created=now,
            used=now,
            expires=now + SESSION_SECONDS,
        )
        with Session(self._engine) as session, session.begin():
            session.execute(delete(AccountSession).where(AccountSession.expires < now))
            session.add(row)
        return token

    def of_cookie(self, token: str) -> tuple[dict[str, Any], str] | None:
        """(account, session id) of a cookie; None when the session or account is not valid."""
        now = time.time()
        with Session(self._engine) as session, session.begin():
            found = self._owner(session, AccountSession, token)
            if found is None:
                return None
            row, account = found
            if row.expires < now or (row.carrier == "key file" and account.name not in self._key_file.names):
                return None  # a key that was taken out of the file takes its sessions with it
            if now - row.used > USED_SECONDS:
                row.used = now
            return _identity(account), row.id

    def sessions(self, account: str) -> list[dict[str, Any]]:
        """An account's sessions, the last used first."""
        wanted = select(AccountSession).where(AccountSession.account == account, AccountSession.expires > time.time())
        with Session(self._engine) as session:
            rows = session.scalars(wanted.order_by(AccountSession.used.desc()))
            names = ("id", "carrier", "agent", "created", "used", "expires")
            return [{name: getattr(row, name) for name in names} for row in rows]

    def revoke(self, account: str, id: str) -> None:
        """End one session. Raises MissingError."""
        self._remove((AccountSession.account == account) & (AccountSession.id == id))

    def revoke_all(self, account: str, *, but: str | None = None) -> None:
        """End all sessions of an account, except the one with the id `but`."""
        others = AccountSession.account == account
        if but is not None:
            others &= AccountSession.id != but
        with Session(self._engine) as session, session.begin():
            session.execute(delete(AccountSession).where(others))

    # -- API keys ----------------------------------------------------------------------------------------------------

    def add_key(self, account: str, label: str) -> dict[str, Any]:
        """A new API key. The result's `key` is not stored and cannot be shown again."""
        key = KEY_PREFIX + new_token()
        row = AccountKey(
            id=str(uuid.uuid4()),
            digest=digest(key),
            account=account,
            label=label.strip()[:100],
            hint=key[: len(KEY_PREFIX) + 4],
            created=time.time(),
            used=None,
        )
        with Session(self._engine) as session, session.begin():
            if len(session.scalars(select(AccountKey.id).where(AccountKey.account == account)).all()) >= MOST_KEYS:
                raise ApiError(409, f"An account has at most {MOST_KEYS} keys. Delete one first.")
            session.add(row)
            session.flush()
            return {**_key(row), "key": key}

    def of_key(self, key: str) -> dict[str, Any] | None:
        """The account of an API key, or None."""
        if not key.startswith(KEY_PREFIX):
            return None
        now = time.time()
        with Session(self._engine) as session, session.begin():
            found = self._owner(session, AccountKey, key)
            if found is None:
                return None
            row, account = found
            if row.used is None or now - row.used > USED_SECONDS:
                row.used = now
            return _identity(account)

    def keys(self, account: str) -> list[dict[str, Any]]:
        """An account's API keys, the oldest first."""
        with Session(self._engine) as session:
            rows = session.scalars(select(AccountKey).where(AccountKey.account == account).order_by(AccountKey.created))
            return [_key(row) for row in rows]

    def remove_key(self, account: str, id: str) -> None:
        """Delete an API key. Raises MissingError."""
        self._remove((AccountKey.account == account) & (AccountKey.id == id), AccountKey)

    def of_name(self, name: str) -> dict[str, Any] | None:
        """The account that a name in the key file belongs to, or None when it is disabled."""
        with Session(self._engine) as session:
            account = session.get(Account, name)
            return _identity(account) if account is not None and not account.disabled else None

    def _owner(self, session: Session, kind: Any, token: str) -> tuple[Any, Account] | None:
        row = session.scalars(select(kind).where(kind.digest == digest(token))).first()
        account = session.get(Account, row.account) if row is not None else None
        return (row, account) if account is not None and not account.disabled else None

    def _remove(self, which: ColumnElement[bool], kind: Any = AccountSession) -> None:
        with Session(self._engine) as session, session.begin():
            if session.execute(delete(kind).where(which)).rowcount != 1:  # type: ignore[attr-defined]
                raise MissingError


def _identity(account: Account) -> dict[str, Any]:
    return {"id": account.id, "name": account.name, "role": account.role}


def _key(row: AccountKey) -> dict[str, Any]:
    return {"id": row.id, "label": row.label, "hint": row.hint, "created": row.created, "used": row.used}
