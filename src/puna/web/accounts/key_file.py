"""The key file: API keys that the operator hands out, one a line."""

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

from puna.core.errors import PunaError


class KeyFile:
    """The keys of a key file, compared in constant time. owners: key -> name."""

    def __init__(self, owners: Mapping[str, str]) -> None:
        # Digests have equal length, so comparing them does not reveal a key's length either.
        self._owners = [(_digest(key), name) for key, name in owners.items()]
        self.names = frozenset(owners.values())

    def owner(self, key: str) -> str | None:
        """The name this key belongs to. All keys are compared, so the time taken reveals nothing."""
        given, found = _digest(key), None
        for digest, name in self._owners:
            if hmac.compare_digest(given, digest):
                found = name
        return found

    def __bool__(self) -> bool:
        return bool(self._owners)


def read_keys(path: Path) -> dict[str, str]:
    """Read a key file: one key a line, `KEY` or `NAME = KEY`; # starts a comment.

    Returns key -> name.

    Raises PunaError when the file cannot be read or has no keys, for a key of under 8 characters, and for a duplicate.
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
            raise PunaError(f"{path}, line {number}: this key is already listed.", "Give each name its own key.")
        keys[key] = name
    if not keys:
        raise PunaError(f"The key file {path} has no keys.", "Write one a line: KEY, or NAME = KEY.")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
