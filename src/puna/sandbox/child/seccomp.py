"""The allowlist of system calls for untrusted code, as a seccomp program built by hand.

All other calls fail with EPERM ("Operation not permitted"), so calls that a newer kernel adds are refused until they
are listed here. A process may use files, memory, clocks and its own threads. It cannot start processes (fork, exec),
open sockets except a connected pair (asyncio wakes itself with one), raise limits, or signal any process but itself.
Classic BPF as in the kernel's Documentation/userspace-api/seccomp_filter.rst; numbers from its syscall tables.
"""

import functools
import os
import struct

# Audit architecture, then the numbers of calls allowed with any arguments.
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED = {
    "x86_64": "0-15 17-28 32-40 45 48 51 55 60-61 63 73-91 95-100 102 104 107-108 110-111 115 118 120-121 124 "
    "127-128 130-132 137-138 158 186 201-202 204 217-218 221 228-233 235 257-258 262-271 273 280-281 285 290-293 "
    "295-296 316 318 324 326-328 332 334 436 439 449 452",
    "aarch64": "17 19-24 32 34-38 43-50 52-53 56-57 59 61-73 78-80 82-83 88 93-94 96 98-99 101-103 113-115 123-124 "
    "132-137 139 148 150 153 155-156 158 160 163 165-166 169 172-179 204 207 209-210 214-216 222-223 226-227 "
    "232-233 260 276 278 283 285-287 291 293 436 439 449 452",
}
# Calls allowed depending on their arguments, in the order: clone, ioctl, kill, tgkill, prctl, prlimit64, socketpair,
# sendto, fcntl.
DECIDED = {
    "x86_64": (56, 16, 62, 234, 157, 302, 53, 44, 72),
    "aarch64": (220, 29, 129, 131, 167, 261, 199, 206, 25),
}
CLONE3 = 435
_CLONE_THREAD = 0x10000
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: needed to open and inspect a file.
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# Descriptors, flags and locks. Not F_SETOWN and F_SETSIG, with which the kernel sends any signal on the process's
# behalf.
_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
_PRCTLS = (15, 16, 0x53564D41)  # a thread's name, and that of an anonymous mapping

_LOAD, _JUMP, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | 1  # EPERM
_ABSENT = 0x00050000 | 38  # ENOSYS: libraries then fall back to an older call


@functools.cache
def program(pid: int) -> bytes:
    """The filter for process `pid` (as it sees itself). Raises OSError on a processor without a list here."""
    machine = os.uname().machine
    if machine not in ARCHITECTURE:
        raise OSError(38, f"no list of system calls for {machine}")
    clone, ioctl, kill, tgkill, prctl, prlimit, socketpair, sendto, fcntl = DECIDED[machine]
    code = [
        (_LOAD, 0, 0, 4),  # seccomp_data.arch
        (_EQUAL, 1, 0, ARCHITECTURE[machine]),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, 0),  # seccomp_data.nr; x32 numbers are above every allowed one
        (_EQUAL, 0, 1, CLONE3),
        (_RETURN, 0, 0, _ABSENT),
    ]
    for number, argument, how, values in (
        (clone, 0, _ANY_BIT, (_CLONE_THREAD,)),
        (ioctl, 1, _EQUAL, _IOCTLS),
        (kill, 0, _EQUAL, (pid,)),
        (tgkill, 0, _EQUAL, (pid,)),
        (prctl, 0, _EQUAL, _PRCTLS),
        (prlimit, 2, _EQUAL, (0,)),  # reading a limit, not setting one
        (socketpair, 0, _EQUAL, (1,)),  # AF_UNIX
        (sendto, 4, _EQUAL, (0,)),  # to the peer, no address
        (fcntl, 1, _EQUAL, _FCNTLS),
    ):
        code += _when(number, argument, how, values)
    return _packed(code) + _allowed(machine)


@functools.cache
def _allowed(machine: str) -> bytes:
    """The end of every filter: calls on the list are allowed, all others refused."""
    code = []
    for low, high in ranges(ALLOWED[machine]):
        if low == high:
            code += [(_EQUAL, 0, 1, low), (_RETURN, 0, 0, _ALLOW)]
        else:
            code += [(_GREATER_EQUAL, 0, 2, low), (_GREATER_EQUAL, 1, 0, high + 1), (_RETURN, 0, 0, _ALLOW)]
    code.append((_RETURN, 0, 0, _REFUSE))
    return _packed(code)


def _packed(code: list[tuple[int, int, int, int]]) -> bytes:
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def ranges(text: str) -> list[tuple[int, int]]:
    """Parse "1-3 7" as [(1, 3), (7, 7)]."""
    pairs = [part.split("-") for part in text.split()]
    return [(int(pair[0]), int(pair[-1])) for pair in pairs]


def _when(number: int, argument: int, how: int, values: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """Instructions for one call: allow it if its argument matches one of `values`, else refuse it.

    For zero both halves of the 64-bit argument are compared; the other arguments are ints to the kernel too.
    """
    body: list[tuple[int, int, int, int]] = []
    if values == (0,):
        body += [(_LOAD, 0, 0, 20 + 8 * argument), (_EQUAL, 1, 0, 0), (_RETURN, 0, 0, _REFUSE)]
    body.append((_LOAD, 0, 0, 16 + 8 * argument))
    for value in values:
        body += [(how, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    body.append((_RETURN, 0, 0, _REFUSE))
    return [(_EQUAL, 0, len(body), number), *body]
