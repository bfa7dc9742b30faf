"""Request errors, in the form OpenAI's clients expect.

Every failure is sent as {"error": {"message", "type", "param", "code"}}, with the status that makes the openai-python
client raise the matching exception: 400 for an invalid request, 401, 404, 413, 429 with Retry-After when there is no
capacity, 503 when the server is shutting down or its engine has failed, and 504 when a request took too long.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from puna.core.errors import PunaError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """A failure with its HTTP status.

    `type` follows from the status unless given; `headers` are sent with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.type = type or _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object of the response, or of an error event within a stream."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class MissingError(LookupError):
    """The object does not exist, or belongs to another user. Routes answer 404 in both cases."""


def not_found() -> ApiError:
    """The response to `MissingError`."""
    return ApiError(404, "There is no such thing here, or it is not yours.")


def bad_request(error: PunaError, *, param: str | None = None) -> ApiError:
    """A request that a lower layer rejected."""
    return ApiError(400, str(error), param=param)


def invalid(error: ValidationError) -> ApiError:
    """The first validation error of a body, with the path of the field."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    # Of a union's alternatives, the one that got furthest is the one that was meant.
    worst = max(found, key=lambda item: len(item["loc"]))
    path = ".".join(str(part) for part in worst["loc"] if isinstance(part, int) or _is_field(part))
    message = worst["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{path}: {message}" if path else message, param=path or None)


def _is_field(part: str) -> bool:
    """Whether a part of a location is a key of the body, not the name of a union's member."""
    return part.islower() and part.replace("_", "").isalnum() and part not in ("str", "int", "float", "bool", "dict")
