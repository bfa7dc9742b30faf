"""What a person can choose about the server. Everything has a limit by default."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from puna.core.errors import PunaError


@dataclass(frozen=True)
class Settings:
    """Names, limits and doors. Times are in seconds."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Mapping[str, str] = field(default_factory=dict)
    """Key -> name of its owner. Empty: nobody is asked for a key."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which the server may be called, besides localhost, 127.0.0.1, [::1] and `host`; "*" for any."""
    cors_origins: tuple[str, ...] = ()
    """Pages of other origins that may call the API from a browser, such as https://app.example."""
    page: bool = True
    """Whether / is the page to talk in."""
    data: str = ""
    """Where conversations are kept: a directory or a postgres:// URL. Empty: a directory of the user's."""
    max_queue: int = 64
    """Texts that may wait for a place, n of one request counted as n; more get 429."""
    max_body_bytes: int = 10 * 2**20
    body_seconds: float = 30.0
    """How long a request's body may take to come in; then 408."""
    request_seconds: float = 600.0
    """How long a request may take altogether; then 504, or an error event in a stream."""
    prepare_seconds: float = 30.0
    """How long rendering, tokenising and compiling a grammar may take; then 504."""
    write_seconds: float = 60.0
    """How long a client may take to read one piece; then its stream ends and its pages are free."""
    stream_buffer: int = 4096
    """Tokens that wait for a slow reader at most; then its stream ends."""
    drain_seconds: float = 30.0
    """After SIGTERM requests on their way have this long to end."""
    stuck_seconds: float = 1.5
    """/health/progress fails when the engine is busy and has finished no step for so long."""
    max_stored_responses: int = 1000
    """Answers of /v1/responses kept for previous_response_id; the oldest go first."""


def read_keys(path: Path) -> dict[str, str]:
    """A key file: a line for each key, `KEY` or `NAME = KEY`; # begins a comment. Returns key -> name.

    Raises PunaError when there is no such file or no key in it, for a key of under 8 characters and for one given
    twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise PunaError(f"The key file {path} cannot be read ({reason}).", "Check --api-key-file.") from None
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        name, equals, key = (part.strip() for part in text.partition(" = "))
        name, key = (name, key) if equals else (f"key-{number}", text)
        if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
            raise PunaError(
                f"{path}, line {number}: a key has 8 or more printable ASCII characters and no space.",
                "`openssl rand -hex 24` makes a good one.",
            )
        if key in keys:
            raise PunaError(f"{path}, line {number}: this key stands there twice.", "Give everyone one of their own.")
        keys[key] = name
    if not keys:
        raise PunaError(f"The key file {path} holds no key.", "Write one a line: KEY, or NAME = KEY.")
    return keys
