"""The secret that signs the page's cookies: kept, so that people stay signed in when the server starts again."""

import os
import secrets
from pathlib import Path

from puna.core.errors import PunaError
from puna.core.files import disk_errors

SECRET_BYTES = 32


def secret_in(folder: Path) -> bytes:
    """The secret kept in a folder, made when there is none, readable by its owner only. Raises PunaError."""
    path = folder / "session.secret"
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            pass
        else:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(SECRET_BYTES))
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        secret = path.read_bytes()
    if len(secret) < SECRET_BYTES:
        raise PunaError(f"{path} is too short to be a secret.", "Remove it; a new one is made and all must sign in.")
    return secret
