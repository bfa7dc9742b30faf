"""Reads and validates JSON request bodies within size and time limits."""

import asyncio
import zlib
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from puna.web.errors import ApiError, invalid
from puna.web.settings import WebSettings

T = TypeVar("T", bound=BaseModel)


class Body(BaseModel):
    """A request body. Unknown keys are rejected."""

    model_config = ConfigDict(extra="forbid")


async def read_body(request: Request, kind: type[T]) -> T:
    """Return the body as a `kind`. Raises ApiError: 400 when it is invalid, 408, 413 and 415.

    The content type must be JSON: browsers send any other type across origins without asking first.
    """
    settings: WebSettings = request.app.state.web.settings
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


async def _read(request: Request, settings: WebSettings) -> bytes:
    """The body's bytes; reading stops as soon as the body is too large or too slow."""
    most = settings.max_body_bytes
    too_large = ApiError(
        413, f"The body is larger than {most} bytes.", code="body_too_large", headers={"connection": "close"}
    )
    decoder = _Decoder(request.headers.get("content-encoding", ""), most)
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > most:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for piece in request.stream():
                data += decoder.decode(piece)
                if len(data) > most:
                    raise too_large
    except TimeoutError:
        raise ApiError(
            408, f"The body did not arrive within {settings.body_seconds:g} seconds.", headers={"connection": "close"}
        ) from None
    except ClientDisconnect:
        raise ApiError(400, "The client disconnected before it had sent the body.") from None
    decoder.end()
    return bytes(data)


class _Decoder:
    """Decodes a body (RFC 9110, 8.4) to hardly more than `most` bytes. Raises ApiError 415 for an unknown coding."""

    def __init__(self, coding: str, most: int) -> None:
        self._coding, self._most = coding.strip().lower() or "identity", most
        if self._coding not in ("identity", "gzip", "x-gzip", "deflate"):
            raise ApiError(
                415,
                f"Content-Encoding {self._coding} is not supported. Send the body as it is, or with gzip or deflate.",
                headers={"accept-encoding": "gzip, deflate", "connection": "close"},
            )
        # 32 recognises gzip and zlib by their first bytes.
        self._inflate = None if self._coding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)

    def decode(self, piece: bytes) -> bytes:
        """Decode the next piece. Raises ApiError 400 when it is not in the announced coding."""
        if self._inflate is None:
            return piece
        try:
            return self._inflate.decompress(piece, self._most + 1)
        except zlib.error as error:
            raise self._broken(str(error)) from None

    def end(self) -> None:
        """Check that the body was whole."""
        if self._inflate is not None and not self._inflate.eof:
            raise self._broken("it ends too early")

    def _broken(self, why: str) -> ApiError:
        return ApiError(400, f"The body is not valid {self._coding} ({why}).", code="invalid_body")


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
