"""Pages, each with its own Content-Security-Policy and Permissions-Policy.

By default a page may run, load and reach only this server's own files and routes, has no inline scripts or styles, and
no permission for camera, microphone or location. A page that needs more says so in its `PagePolicy`.
"""

from dataclasses import dataclass
from pathlib import Path

from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).with_name("static")
"""The shared kit: CSS, JavaScript, icons and texts. Mounted at /static/web."""

FEATURES = ("camera", "microphone", "geolocation", "payment", "usb", "display-capture", "xr-spatial-tracking")
_TYPES = {".js": "text/javascript", ".webmanifest": "application/manifest+json", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class PagePolicy:
    """What a page may do beyond the default.

    permissions: names of FEATURES, such as "camera". The others are more sources for images, media, requests and
    workers, such as "blob:" (a WebGL page loads its textures so). wasm: it may compile WebAssembly.
    """

    permissions: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()
    workers: tuple[str, ...] = ()
    wasm: bool = False

    def headers(self) -> dict[str, str]:
        """The headers of a page under this policy."""
        permissions = ", ".join(f"{name}=({'self' if name in self.permissions else ''})" for name in FEATURES)
        return {
            "content-security-policy": self._content_security_policy(),
            "permissions-policy": permissions,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-opener-policy": "same-origin",
            "cache-control": "no-cache",
        }

    def _content_security_policy(self) -> str:
        own = "'self'"
        sources = {
            "default-src": ("'none'",),
            "script-src": (own, "'wasm-unsafe-eval'") if self.wasm else (own,),
            "style-src": (own,),
            "img-src": (own, "data:", *self.images),
            "media-src": (own, *self.media) if self.media else (),
            "connect-src": (own, *self.requests),
            "manifest-src": (own,),
            "worker-src": (own, *self.workers),
            "base-uri": ("'none'",),
            "form-action": ("'none'",),
            "frame-ancestors": ("'none'",),
            "require-trusted-types-for": ("'script'",),
            "trusted-types": ("puna",),
        }
        return "; ".join(f"{name} {' '.join(given)}" for name, given in sources.items() if given)


DEFAULT = PagePolicy()


def page(file: Path, policy: PagePolicy = DEFAULT, *, depth: int = 0) -> HTMLResponse:
    """An HTML file as a page.

    Its files have relative addresses, so that a reverse proxy can publish it under a path. depth: how many slashes its
    own address has after the first.
    """
    text = file.read_text(encoding="utf-8").replace('="static/', f'="{"../" * depth}static/')
    return HTMLResponse(text, headers=policy.headers())


class Files(StaticFiles):
    """Static files. Browsers revalidate them every time, so an upgrade takes effect at once.

    Scripts of products import the kit's by absolute addresses, which are sent as relative ones: a reverse proxy may
    publish all of them under a path.
    """

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        if isinstance(response, FileResponse) and path.endswith(".js"):
            text = Path(response.path).read_text(encoding="utf-8").replace('from "/static/web/js/', 'from "../web/js/')
            kept = {name: response.headers[name] for name in ("etag", "last-modified")}
            response = Response(text, headers=kept)
        if kind := _TYPES.get(Path(path).suffix):
            response.headers["content-type"] = f"{kind}; charset=utf-8"
        response.headers["cache-control"] = "no-cache"
        return response
