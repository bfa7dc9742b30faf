"""Signing in: a key is shown once, and a cookie that no script can read stands for it from then on."""

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from puna.serve.assistant.page import Here, same_origin
from puna.serve.auth import COOKIE, LOCAL, SESSION_SECONDS
from puna.serve.body import read_body
from puna.serve.errors import ApiError

router = APIRouter(prefix="/app", dependencies=[Depends(same_origin)], include_in_schema=False)


class Key(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: str = Field(min_length=1, max_length=1000)


@router.post("/login")
async def login(request: Request, response: Response, page: Here) -> dict[str, Any]:
    """Take a key and give a cookie for it. Raises ApiError 401."""
    keys = page.server.keys
    if not keys.wanted:
        return {"user": LOCAL}
    name = keys.owner((await read_body(request, Key)).key.strip())
    if name is None:
        raise ApiError(401, "This key is not known here.", code="invalid_api_key")
    response.set_cookie(
        COOKIE,
        keys.session(name),
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return {"user": name}


@router.post("/logout")
def logout(response: Response) -> dict[str, Any]:
    """Take the cookie back."""
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return {}
