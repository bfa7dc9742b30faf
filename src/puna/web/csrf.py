"""Cross-site request forgery: which requests come from the server's own pages.

Browsers name the page that sends a request in Origin, and ask before they send JSON to another site.
"""

from urllib.parse import urlsplit

from starlette.requests import HTTPConnection, Request

from puna.web.errors import ApiError
from puna.web.settings import WebSettings


def same_origin(request: Request) -> None:
    """Reject a write that another site could have made a browser send.

    Raises ApiError 403 or 415.
    """
    if request.method in ("GET", "HEAD"):
        return
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "The content type must be application/json.")
    if not _own(request, request.headers.get("origin", "")):
        raise ApiError(
            403,
            "Only this server's own pages may send this request: Origin must be this server. Behind a reverse proxy, "
            "give what browsers see: --public-origin https://NAME.",
            code="other_origin",
        )


def from_own_page(request: HTTPConnection) -> bool:
    """Whether the browser says that one of our own pages sent the request.

    Cookies travel with the requests of other sites' pages too.
    """
    origin = request.headers.get("origin")
    if origin is not None:
        return _own(request, origin)
    return request.headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")


def _own(request: HTTPConnection, origin: str) -> bool:
    """Whether an origin is this server's: the one it is published at, or the Host of the request."""
    settings: WebSettings = request.app.state.web.settings
    if settings.public_origin and origin.lower() == settings.public_origin.lower():
        return True
    return bool(origin) and urlsplit(origin).netloc == request.headers.get("host")
