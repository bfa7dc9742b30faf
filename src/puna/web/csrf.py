"""Cross-site request forgery: which requests come from the server's own pages.

Browsers name the page that sends a request in Origin, and ask before they send JSON to another site.
"""

from urllib.parse import urlsplit

from starlette.requests import HTTPConnection, Request

from puna.web.errors import ApiError


def same_origin(request: Request) -> None:
    """Reject a write that another site could have made a browser send.

    Raises ApiError 403 or 415.
    """
    if request.method in ("GET", "HEAD"):
        return
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "The content type must be application/json.")
    if urlsplit(request.headers.get("origin", "")).netloc != request.headers.get("host"):
        raise ApiError(403, "Only this server's own pages may send this request: Origin must be this server.")


def from_own_page(request: HTTPConnection) -> bool:
    """Whether the browser says that one of our own pages sent the request.

    Cookies travel with the requests of other sites' pages too.
    """
    origin = request.headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc == request.headers.get("host")
    return request.headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
