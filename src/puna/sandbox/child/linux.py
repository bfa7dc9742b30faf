"""Linux system calls through ctypes: namespaces, mounts, capabilities, seccomp, Landlock.

Standard library only, because the process that runs untrusted code imports nothing of Puna but this package
(`sandbox.child`). Every function raises OSError, with the call's name, when the kernel refuses.
Numbers are from the kernel's headers (include/uapi/linux); those below are the same on x86_64 and aarch64.
"""

import ctypes
import os
import struct
from collections.abc import Sequence

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 8, 32, 4096, 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER = 1, 4, 24, 36
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, PR_SET_SECCOMP = 38, 47, 4, 22
SECCOMP_MODE_FILTER = 2

_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(what: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _syscall(what: str, number: int, *arguments: object) -> int:
    return _call(what, _libc.syscall(ctypes.c_long(number), *arguments))


def unshare(flags: int) -> None:
    """Move this process (or, for process ids, its later children) into new namespaces."""
    _call("unshare", _libc.unshare(ctypes.c_int(flags)))


def restore_child_namespace() -> None:
    """Undo unshare(CLONE_NEWPID) for later children: they join this process's namespace again (Linux 5.8)."""
    this = os.pidfd_open(os.getpid())
    try:
        _call("setns", _libc.setns(ctypes.c_int(this), ctypes.c_int(CLONE_NEWPID)))
    finally:
        os.close(this)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    _call(
        f"mount {target}",
        _libc.mount(
            source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None
        ),
    )


def bind_read_only(source: str, target: str, *, devices: bool = False) -> None:
    """Bind `source` (a file or a tree) to `target`, read-only; device files work only with `devices`."""
    mount(source, target, flags=MS_BIND | MS_REC)
    try:
        attributes = struct.pack("=QQQQ", 1 | 2 | (0 if devices else 4), 0, 0, 0)  # MOUNT_ATTR_RDONLY | NOSUID | NODEV
        _syscall(
            "mount_setattr", _MOUNT_SETATTR, -100, target.encode(), 0x8000, attributes, ctypes.c_size_t(len(attributes))
        )
    except OSError:  # before Linux 5.12: one mount at a time, keeping its flags
        flags = os.statvfs(target).f_flag & 0xF
        mount("none", target, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | flags)


def pivot_root_here() -> None:
    """Make the current directory the root and detach the old root."""
    _syscall("pivot_root", _PIVOT_ROOT[os.uname().machine], b".", b".")
    _call("umount", _libc.umount2(b".", ctypes.c_int(MNT_DETACH)))
    os.chdir("/")


def prctl(option: int, *values: int) -> int:
    """prctl(2)."""
    padded = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    return _call("prctl", _libc.prctl(ctypes.c_int(option), *padded))


def drop_capabilities() -> None:
    """Drop all capabilities, including those that a later exec could restore."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:
            break  # past the last capability, or none was held
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _syscall("capset", _CAPSET[os.uname().machine], header, bytes(24))


def seccomp(program: bytes) -> None:
    """Install a filter program (see `child.seccomp`); it cannot be removed."""
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    holder = ctypes.create_string_buffer(fprog, len(fprog))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(holder))


def landlock_abi() -> int:
    """Version of Landlock in this kernel. Raises OSError if there is none or it is disabled."""
    return _syscall("landlock", _LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))


def landlock(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Limit this process to reading below some paths and to using files below others; no execution anywhere.

    From version 4 on this also blocks TCP, from 6 on signals to and abstract sockets of processes outside.
    """
    abi = landlock_abi()
    known = (1 << (13 if abi < 2 else 14 if abi < 3 else 15 if abi < 5 else 16)) - 1
    attribute = struct.pack("=QQQ", known, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    attribute = attribute[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = _syscall(
        "landlock_create_ruleset", _LANDLOCK_CREATE, attribute, ctypes.c_size_t(len(attribute)), ctypes.c_uint32(0)
    )
    read_file, read_dir = 1 << 2, 1 << 3
    special = 1 | 1 << 6 | 1 << 9 | 1 << 11 | 1 << 15  # execute; make character device, socket, block device; ioctl
    for paths, allowed in ((readable, read_file | read_dir), (writable, known & ~special)):
        for path in paths:
            try:
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue  # a path this user cannot reach needs no rule
            file = known & (1 << 1 | read_file | 1 << 14)  # write, read, truncate
            rights = allowed if os.path.isdir(path) else allowed & file
            rule = struct.pack("=Qi", rights, place)
            _syscall("landlock_add_rule", _LANDLOCK_ADD, ruleset, 1, rule, ctypes.c_uint32(0))
            os.close(place)
    _syscall("landlock_restrict_self", _LANDLOCK_RESTRICT, ruleset, ctypes.c_uint32(0))
    os.close(ruleset)
