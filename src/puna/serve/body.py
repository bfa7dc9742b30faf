"""A request's body as one of the protocol's types: read within its limits, refused in OpenAI's words."""

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from puna.serve.errors import ApiError, invalid
from puna.serve.settings import Settings

T = TypeVar("T", bound=BaseModel)


async def read_body(request: Request, kind: type[T]) -> T:
    """The body as a `kind`. Raises ApiError: 400 for what is no such thing, 408, 413 and 415.

    JSON must be called JSON: browsers send anything else from foreign pages without asking first.
    """
    settings: Settings = request.app.state.puna.settings
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise ApiError(415, "The body must be JSON: send the header Content-Type: application/json.")
    data = await _read(request, settings)
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"The body is not valid JSON ({error}).", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"The body must be a JSON object, not {_kind(value)}.", code="invalid_json")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise invalid(error) from None


async def _read(request: Request, settings: Settings) -> bytes:
    """The body's bytes; it is given up as soon as it is seen to be too large or too slow."""
    most = settings.max_body_bytes
    too_large = ApiError(
        413, f"The body is larger than {most} bytes.", code="body_too_large", headers={"connection": "close"}
    )
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > most:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for piece in request.stream():
                data += piece
                if len(data) > most:
                    raise too_large
    except TimeoutError:
        raise ApiError(
            408, f"The body did not come within {settings.body_seconds:g} seconds.", headers={"connection": "close"}
        ) from None
    except ClientDisconnect:
        raise ApiError(400, "The client left before it had sent the body.") from None
    return bytes(data)


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
