"""Settings of the HTTP layer. Every resource is limited by default."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class WebSettings:
    """Addresses, limits and access. Times are in seconds."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Mapping[str, str] = field(default_factory=dict)
    """API key -> user name, as read from the key file. Empty: no key file."""
    accounts: bool | None = None
    """Whether everyone must sign in. None: yes when the server is reachable from other machines, or has an owner."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names to answer to, in addition to localhost, 127.0.0.1, [::1] and `host`; "*" for any."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the API from a browser, such as https://app.example."""
    root_path: str = ""
    """The path under which a reverse proxy publishes the server, such as /puna; empty for the top of a host."""
    public_origin: str = ""
    """What browsers see when a reverse proxy stands before the server, such as https://chat.example."""
    data: str = ""
    """Where data is stored: a directory or a postgres:// URL. Empty: the user's data directory."""
    max_body_bytes: int = 10 * 2**20
    body_seconds: float = 30.0
    """Time limit for receiving a request body; then 408."""
    write_seconds: float = 60.0
    """Time limit for a client to read one piece of a response; then the response ends and its work is cancelled."""

    @property
    def reachable(self) -> bool:
        """Whether other machines can reach the server: it does not listen on a loopback address."""
        return self.host not in LOOPBACK

    @property
    def public_host(self) -> str:
        """The host of the public origin, with its port; empty without one."""
        return urlsplit(self.public_origin).netloc

    @property
    def database(self) -> str:
        """The database's place: `data`, or the user's data directory."""
        return self.data or str(data_directory())


def data_directory() -> Path:
    """The user's data directory: $XDG_DATA_HOME/puna, or ~/.local/share/puna."""
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "puna"
