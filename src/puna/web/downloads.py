"""Files for people to save, under names that keep what they call them (RFC 6266).

The name is sent twice: in UTF-8 (RFC 8187), which every browser reads, and in ASCII for other programs.
"""

import re
from unicodedata import normalize
from urllib.parse import quote

from starlette.responses import Response

MAX_BYTES = 180  # of a name, without its suffix: file systems take 255 bytes, and browsers add numbers
# Separators of paths, what Windows forbids, and characters that are not seen or reorder others.
_FORBIDDEN = re.compile('[\x00-\x1f\x7f-\x9f<>:"/\\\\|?*\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]+')
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|\Z)", re.IGNORECASE)  # Windows' devices


def file_name(title: str, suffix: str, *, otherwise: str = "file") -> str:
    """A title as the name of a file. suffix: with its dot. otherwise: the name when nothing of the title is left."""
    name = " ".join(_FORBIDDEN.sub(" ", normalize("NFC", title)).split()).strip(". ")
    name = name.encode("utf-8", "replace")[:MAX_BYTES].decode("utf-8", "ignore").strip(". ")
    if not name or _RESERVED.match(name):
        name = f"{otherwise} {name}".strip()
    return name + suffix


def attached(title: str, suffix: str, *, otherwise: str = "file") -> dict[str, str]:
    """The header by which a browser saves a response under a title."""
    name = file_name(title, suffix, otherwise=otherwise)
    plain = (re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-").lower()[:60].strip("-") or otherwise) + suffix
    long = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return {"content-disposition": f'attachment; filename="{plain}"{long}'}


def download(text: str, kind: str, title: str, suffix: str, *, otherwise: str = "file") -> Response:
    """A text to be saved as a file. kind: its media type."""
    return Response(text.encode(), media_type=kind, headers=attached(title, suffix, otherwise=otherwise))
