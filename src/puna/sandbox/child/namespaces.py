"""Namespaces and a root directory of their own for untrusted code, entered once by the worker process.

Three plans, tried in this order: "user" (everything in a user namespace, which an ordinary user may create too), "root"
(the same namespaces created by root where user namespaces are disabled) and "plain" (none). The root contains Python's
standard library and the system's shared libraries, read-only, three device files and an empty /tmp; no /proc, no /etc,
no installed packages, nothing of the user's. Standard library only.
"""

import functools
import os
import sys
import sysconfig
from collections.abc import Callable

from puna.sandbox.child import linux

LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
# Directories of any system; the new root is mounted on the first that hides nothing we need. Only this process sees it.
SPOTS = ("/mnt", "/media", "/srv", "/opt", "/var/tmp", "/run", "/tmp")
_OWN = linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS


@functools.cache
def readable() -> tuple[str, ...]:
    """Directories the interpreter may need: its standard library and the system's shared libraries."""
    paths = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        paths.append(sysconfig.get_config_var("LIBDIR"))
    kept: list[str] = []
    for path in (*LIBRARIES, *dict.fromkeys(path for path in paths if path)):
        if os.path.isdir(path) and not any(_within(path, other) for other in kept):
            kept.append(path)
    return tuple(kept)


def enter(plan: str, uid: int, serve: Callable[[], None]) -> None:
    """Enter namespaces by `plan` and run `serve` there as process 1; returns (or exits) when that has ended.

    uid: the user root becomes first, or 0 for an ordinary user, who does not change. Raises OSError when the kernel
    refuses; this process is then of no further use.
    """
    if plan == "plain":
        serve()
        return
    spot = next(s for s in SPOTS if os.path.isdir(s) and not any(_within(path, s) for path in readable()))
    sources = {path: path for path in (*readable(), *DEVICES) if not os.path.islink(path)}
    root = spot
    if plan == "user" and uid:
        # Root can read what its new user cannot, such as an interpreter under /root: bind it before changing the user.
        linux.unshare(linux.CLONE_NEWNS)
        _private()
        linux.mount("none", spot, "tmpfs", linux.MS_NOSUID, "mode=755")
        sources = {path: _bind(path, f"{spot}/{index}") for index, path in enumerate(sources)}
        root = f"{spot}/root"
        os.mkdir(root)
        become(uid)
    owner, group = os.geteuid(), os.getegid()
    linux.unshare(_OWN | (linux.CLONE_NEWUSER if plan == "user" else 0))
    if plan == "user":
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{owner} {owner} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    linux.prctl(linux.PR_SET_PDEATHSIG, 9)
    _private()
    _build(root, sources)
    serve()
    os._exit(0)


def become(uid: int) -> None:
    """Drop root for good: user and group `uid`, no other groups."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    linux.prctl(linux.PR_SET_DUMPABLE, 1)  # else /proc/self stays root's and the maps cannot be written


def _build(root: str, sources: dict[str, str]) -> None:
    """Build the new root at `root` from the sources (path inside -> path to bind there) and move into it."""
    linux.mount("none", root, "tmpfs", linux.MS_NOSUID, "mode=755")
    for path in readable():
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
    for path, source in sources.items():
        _bind(source, root + path, devices=path in DEVICES)
    for folder in ("site-packages", "dist-packages"):
        for path in readable():
            if os.path.isdir(f"{root}{path}/{folder}"):
                linux.mount("none", f"{root}{path}/{folder}", "tmpfs", linux.MS_RDONLY | linux.MS_NOSUID)
    os.mkdir(root + "/tmp", 0o755)
    os.chdir(root)
    linux.pivot_root_here()
    flags = linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | linux.MS_NOSUID
    linux.mount("none", "/", flags=flags)


def _bind(source: str, target: str, *, devices: bool = False) -> str:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    linux.bind_read_only(source, target, devices=devices or not os.path.isdir(source))
    return target


def _private() -> None:
    """Keep mounts made here from appearing outside."""
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)


def _within(path: str, folder: str) -> bool:
    return os.path.realpath(path).startswith(os.path.realpath(folder) + "/") or os.path.realpath(
        path
    ) == os.path.realpath(folder)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def interpreter() -> str:
    """The interpreter itself, not a link to it in a virtual environment, whose files are not visible inside."""
    return os.path.realpath(sys.executable)
