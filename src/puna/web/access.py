"""Declares who may use a route.

The ownership test takes every route with its declaration, and fails without one.

@router.get("/conversations/{id}")
@owned
async def conversation(...)
"""

from collections.abc import Callable
from typing import Literal, TypeVar

Access = Literal["public", "signed in", "owned", "owner"]
F = TypeVar("F", bound=Callable[..., object])


def public(route: F) -> F:
    """Anyone may use it, without signing in."""
    return _declared(route, "public")


def signed_in(route: F) -> F:
    """Everyone who is signed in may use it, and gets only what is theirs or everyone's."""
    return _declared(route, "signed in")


def owned(route: F) -> F:
    """It names an object of one user, which does not exist (404) for anyone else.

    That includes accounts with the role `owner`.
    """
    return _declared(route, "owned")


def owner_only(route: F) -> F:
    """Only accounts with the role `owner` may use it (403)."""
    return _declared(route, "owner")


def access_of(route: Callable[..., object]) -> Access | None:
    """What was declared, or None."""
    return getattr(route, "puna_access", None)


def _declared(route: F, access: Access) -> F:
    route.puna_access = access  # type: ignore[attr-defined]
    return route
