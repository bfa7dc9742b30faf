"""Files that are never half written.

Everything is written under a temporary name in the same folder and renamed when it is complete, so a reader sees the
old content or the new one, never a mixture. A full disk is reported as a sentence, and the old content stays.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from puna.core.errors import PunaError
from puna.core.units import format_bytes


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space", "not allowed" and "in the way" while writing `path` into a PunaError; others pass through.

    An error about a file outside the folder of `path` comes from something that was being read, and passes through too.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PunaError(
                f"No space left on the disk while writing {path}; what was there before is untouched.",
                "Free some space and run the same command again.",
            ) from error
        if error.filename is not None and not _concerns(str(error.filename), path):
            raise
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PunaError(
                f"Not allowed to write {path}.", "Choose another folder or change its permissions."
            ) from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            raise PunaError(
                f"Cannot write {path}: something is in the way ({error.strerror}).", "Choose another name."
            ) from error
        raise


def _concerns(filename: str, path: Path) -> bool:
    """Whether a file named in an error is inside the folder of `path`, or is one of its parent folders."""
    named, folder = Path(os.path.abspath(filename)), Path(os.path.abspath(path)).parent
    return named.is_relative_to(folder) or folder.is_relative_to(named)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` completely or not at all. Creates the folder if needed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, completely or not at all. Creates the folder if needed."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, completely or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises PunaError when it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PunaError(f"{path} does not exist.", "Check the path.") from None
    except OSError as error:
        raise PunaError(f"{path} cannot be read ({error.strerror}).", "Check the path and its permissions.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PunaError(f"{path} is not valid JSON ({error}).", "It may be truncated; create it again.") from None


@contextlib.contextmanager
def removed_if_empty(folder: Path) -> Iterator[None]:
    """When the block fails, remove `folder` and its parents again, where they are new and empty."""
    folder = Path(os.path.abspath(folder))
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not there, or not empty
            for place in new:
                place.rmdir()
        raise


@contextlib.contextmanager
def new_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder next to `path`; rename it to `path` if the block succeeds, remove it if it fails.

    replace: an existing `path` is replaced (and removed) only after the new one is complete.
    Raises PunaError if `path` exists and `replace` is false, even if it appeared in the meantime.
    """
    path = Path(os.path.abspath(path))  # "." has no name to derive a sibling from
    if path.exists() and (not replace or not path.is_dir()):
        raise PunaError(f"{path} exists already.", "Choose another name or remove it first.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path), removed_if_empty(path.parent):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            if path.exists():
                if not replace:
                    raise PunaError(f"{path} exists already; another process made it.", "Choose another name.")
                old = path.with_name(f".{path.name}.{os.getpid()}.old")
                os.rename(path, old)
                try:
                    os.rename(temporary, path)
                except OSError:
                    os.rename(old, path)
                    raise
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def give_usual_mode(path: Path) -> None:
    """Give a file the mode of its neighbours, for libraries that write with one of their own (safetensors: 0600).

    The mode is read from a file made for it: the process' umask cannot be read without changing it for all threads.
    """
    probe = path.with_name(f".{path.name}.{os.getpid()}.mode")
    with disk_errors(path):
        probe.touch()
        try:
            path.chmod(stat.S_IMODE(probe.stat().st_mode))
        finally:
            probe.unlink(missing_ok=True)


def _remove_lone_lock(path: Path, failed: type[BaseException] | None, *_: object) -> None:
    if failed is not None and path.is_dir() and [entry.name for entry in path.iterdir()] == [".lock"]:
        (path / ".lock").unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make the names in a folder survive a power cut, as fsync of a file does for its bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise PunaError if the disk of `folder` has fewer than `needed` bytes free. `what` names what needs them."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise PunaError(
            f"{what} needs {format_bytes(needed)} but the disk of {folder} has {format_bytes(free)} free.",
            "Free some space or write elsewhere.",
        )


@contextlib.contextmanager
def lock_directory(path: Path) -> Iterator[None]:
    """Hold `path`/.lock for this process; the lock ends with the process, however it ends.

    A block that fails before it has written anything leaves no folder behind that was not there before.
    Raises PunaError if a running process holds it.
    """
    if path.exists() and not path.is_dir():
        raise PunaError(f"{path} is a file, not a folder.", "Choose another name.")
    with contextlib.ExitStack() as stack:
        stack.enter_context(removed_if_empty(path))
        if not path.exists():
            stack.push(partial(_remove_lone_lock, path))
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path / ".lock", "a+", encoding="utf-8"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise PunaError(
                f"{path} is in use by a living process (pid {holder}).",
                "Wait for it, stop it, or use another run directory.",
            ) from None
        except OSError as error:
            raise PunaError(
                f"The disk of {path} cannot lock files ({error.strerror}).", "Put the run directory on another disk."
            ) from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
