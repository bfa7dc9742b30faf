"""The tables of accounts. Times are seconds since 1970. Secrets are stored as hashes only."""

from pathlib import Path
from typing import ClassVar, Literal

from sqlalchemy import Double, ForeignKey, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from puna.web.database import Schema

Role = Literal["owner", "creator", "member"]
ROLES: tuple[Role, ...] = ("owner", "creator", "member")
"""owner: manages accounts. creator: may publish what others use. member: uses it."""


class AccountsTable(DeclarativeBase):
    """All tables of accounts."""

    type_annotation_map: ClassVar = {float: Double}


class Account(AccountsTable):
    """A person.

    id: what other tables refer to. folded: the name as compared, without case. password: an argon2 hash.

    password is null for names from the key file, which sign in with their key.
    """

    __tablename__ = "accounts"
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    folded: Mapped[str] = mapped_column(Text, unique=True)
    role: Mapped[str] = mapped_column(String(16))
    password: Mapped[str | None] = mapped_column(Text)
    disabled: Mapped[bool]
    created: Mapped[float]


class AccountSession(AccountsTable):
    """A signed-in browser.

    digest: of the cookie's token. carrier: how they signed in (password, api key, key file).
    """

    __tablename__ = "account_sessions"
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    account: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    carrier: Mapped[str] = mapped_column(String(16))
    agent: Mapped[str] = mapped_column(Text)
    created: Mapped[float]
    used: Mapped[float]
    expires: Mapped[float]


class AccountKey(AccountsTable):
    """An API key. hint: its first characters, to recognise it by."""

    __tablename__ = "account_keys"
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    account: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    label: Mapped[str] = mapped_column(Text)
    hint: Mapped[str] = mapped_column(String(16))
    created: Mapped[float]
    used: Mapped[float | None]


class Invitation(AccountsTable):
    """A one-time link to a new account, or (account given) to a new password for that one."""

    __tablename__ = "account_invitations"
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    account: Mapped[str | None] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    inviter: Mapped[str | None] = mapped_column(ForeignKey("accounts.id", ondelete="SET NULL"))
    created: Mapped[float]
    expires: Mapped[float]


SCHEMA = Schema("accounts", AccountsTable.metadata, Path(__file__).with_name("migrations"))
