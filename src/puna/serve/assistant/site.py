"""The page itself and its files, under a policy by which a browser runs and loads nothing that is not ours."""

from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from puna import __version__

STATIC = Path(__file__).with_name("static")
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "manifest-src 'self'",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types puna",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "cache-control": "no-cache",
}
TYPES = {".js": "text/javascript", ".webmanifest": "application/manifest+json", ".svg": "image/svg+xml"}

router = APIRouter(include_in_schema=False)


class Files(StaticFiles):
    """Static files; a browser asks each time whether they are still the same, so that an upgrade is seen at once."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        if kind := TYPES.get(Path(path).suffix):
            response.headers["content-type"] = f"{kind}; charset=utf-8"
        response.headers["cache-control"] = "no-cache"
        return response


@router.get("/")
def index() -> FileResponse:
    """The page."""
    return FileResponse(STATIC / "index.html", headers=HEADERS)


@router.get("/sw.js")
def worker(request: Request) -> Response:
    """The service worker. Its name for the cache is the version, so that a new Puna brings new files."""
    text = (STATIC / "sw.js").read_text(encoding="utf-8").replace("@VERSION@", __version__)
    headers = {"cache-control": "no-cache", "content-security-policy": "default-src 'none'; connect-src 'self'"}
    return Response(text, media_type="text/javascript; charset=utf-8", headers=headers)
