"""Where untrusted code lives: namespaces and a root directory of its own, entered once by the warm process.

Three plans, tried by `run` in this order: "user" (everything inside a user namespace, which an ordinary user may make
too), "root" (the same namespaces made by root where user namespaces are switched off) and "plain" (none). The root
holds Python's standard library and the system's shared libraries, read-only, three device files and an empty /tmp;
no /proc, no /etc, no installed packages, nothing of the user's. Standard library only.
"""

import functools
import os
import sys
import sysconfig
from collections.abc import Callable

from puna.sandbox import kernel

LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
# Directories that any system has; the room is built on the first that hides nothing we need. Only this process sees it.
SPOTS = ("/mnt", "/media", "/srv", "/opt", "/var/tmp", "/run", "/tmp")
_OWN = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS


@functools.cache
def readable() -> tuple[str, ...]:
    """Directories with code that the interpreter may need: its standard library and the system's shared libraries."""
    paths = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        paths.append(sysconfig.get_config_var("LIBDIR"))
    kept: list[str] = []
    for path in (*LIBRARIES, *dict.fromkeys(path for path in paths if path)):
        if os.path.isdir(path) and not any(_within(path, other) for other in kept):
            kept.append(path)
    return tuple(kept)


def enter(plan: str, uid: int, serve: Callable[[], None]) -> None:
    """Enter the room by `plan` and run `serve` in it as process 1; returns (or exits) when that has ended.

    uid: whom root becomes first, or 0 for an ordinary user, who stays who they are. Raises OSError where the kernel
    refuses; then this process is of no further use.
    """
    if plan == "plain":
        serve()
        return
    spot = next(s for s in SPOTS if os.path.isdir(s) and not any(_within(path, s) for path in readable()))
    sources = {path: path for path in (*readable(), *DEVICES) if not os.path.islink(path)}
    root = spot
    if plan == "user" and uid:
        # Root reads what the user it becomes cannot, such as an interpreter under /root: show it before becoming.
        kernel.unshare(kernel.CLONE_NEWNS)
        _private()
        kernel.mount("none", spot, "tmpfs", kernel.MS_NOSUID, "mode=755")
        sources = {path: _show(path, f"{spot}/{index}") for index, path in enumerate(sources)}
        root = f"{spot}/root"
        os.mkdir(root)
        become(uid)
    owner, group = os.geteuid(), os.getegid()
    kernel.unshare(_OWN | (kernel.CLONE_NEWUSER if plan == "user" else 0))
    if plan == "user":
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{owner} {owner} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
    _private()
    _build(root, sources)
    serve()
    os._exit(0)


def become(uid: int) -> None:
    """Stop being root for good: user and group `uid`, no other groups."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else /proc/self stays root's and the maps cannot be written


def _build(root: str, sources: dict[str, str]) -> None:
    """Make the new root at `root` from the sources (path inside -> path to show there) and move into it."""
    kernel.mount("none", root, "tmpfs", kernel.MS_NOSUID, "mode=755")
    for path in readable():
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
    for path, source in sources.items():
        _show(source, root + path, devices=path in DEVICES)
    for folder in ("site-packages", "dist-packages"):
        for path in readable():
            if os.path.isdir(f"{root}{path}/{folder}"):
                kernel.mount("none", f"{root}{path}/{folder}", "tmpfs", kernel.MS_RDONLY | kernel.MS_NOSUID)
    os.mkdir(root + "/tmp", 0o755)
    os.chdir(root)
    kernel.pivot_root_here()
    flags = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID
    kernel.mount("none", "/", flags=flags)


def _show(source: str, target: str, *, devices: bool = False) -> str:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    kernel.bind_read_only(source, target, devices=devices or not os.path.isdir(source))
    return target


def _private() -> None:
    """Keep mounts made here from appearing outside."""
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)


def _within(path: str, folder: str) -> bool:
    return os.path.realpath(path).startswith(os.path.realpath(folder) + "/") or os.path.realpath(
        path
    ) == os.path.realpath(folder)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def interpreter() -> str:
    """The interpreter itself, not the link to it in a virtual environment, whose own files stay out of the room."""
    return os.path.realpath(sys.executable)
