"""The warm process inside the room: waits for work, forks for every evaluation, watches, kills, sweeps up.

    run.Sandbox ── socket ──> warm process (process 1 of the room) ──fork──> untrusted code
                            knows limits only; deadline, kill             all walls, harness.run

A fork of a started interpreter takes a millisecond or two where a fresh one takes tens. The warm process began as a
fresh interpreter with an empty environment and reads neither source nor inputs: those wait in files handed through to
the child. So there is nothing in its memory, hence in a child's, that is worth reading. Standard library only.
"""

import gc
import json
import math
import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from puna.sandbox import filter as calls
from puna.sandbox import harness, kernel, room

PRELOADED = (
    "abc array ast base64 bisect calendar cmath collections collections.abc copy csv ctypes dataclasses "
    "datetime decimal difflib enum fractions functools hashlib heapq html inspect io itertools json keyword locale "
    "math numbers operator pprint queue random re secrets statistics string struct textwrap threading time traceback "
    "types typing unicodedata unittest uuid weakref zlib "
    "encodings.ascii encodings.latin_1 encodings.utf_16 encodings.utf_32"
)
NAMESPACES = ("user", "pid", "net", "ipc", "root", "tmpfs")


def main(control: int, plan: str, ceiling: str, uid: int) -> None:
    """Enter the room by `plan`, say over the socket `control` which walls stand, then serve until it closes.

    uid: whom root becomes, 0 for an ordinary user. ceiling: no more walls than this level has (for tests and benches).
    """
    os.environ.clear()
    for name in PRELOADED.split():
        __import__(name)
    sys.path[:] = [path for path in sys.path if path.startswith(tuple(room.readable()))]
    line = socket.socket(fileno=control)
    try:
        room.enter(plan, uid, lambda: _serve(line, plan, ceiling, uid))
    except OSError as error:
        line.send(json.dumps({"failed": str(error.strerror or error)}).encode())
        os._exit(1)


def _serve(line: socket.socket, plan: str, ceiling: str, uid: int) -> None:
    uid_inside = uid if plan != "user" else 0  # in a user namespace the whole room has become that user already
    walls = _walls(plan, ceiling, uid, uid_inside)
    if plan == "plain":
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)  # who escapes from its parent becomes our child
    # What children would do each for itself, on pages of memory of their own, is done here once.
    if not walls["seccomp"]:
        calls.program(1)
    for name in [name for name in sys.modules if name.split(".")[0] == "puna"]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # our objects leave the collector's lists, and pages stay shared after a fork
    line.send(json.dumps({"walls": walls}).encode())
    while True:
        message, files, _, _ = socket.recv_fds(line, 65536, 8)
        if not message:
            return
        if message == b"cancel":
            continue  # came when its evaluation had just ended
        try:
            said = _watch(line, json.loads(message), files, plan, walls, uid_inside)
        except BaseException as error:
            said = {"error": f"{type(error).__name__}: {error}"[:500]}
        line.send(json.dumps(said).encode())


def _walls(plan: str, ceiling: str, uid: int, uid_inside: int) -> dict[str, str]:
    """Every wall and why it is missing ("" when it stands), each tried in a process of its own where it can fail."""
    lower = f"no more than '{ceiling}' was asked for"
    walls = dict.fromkeys(NAMESPACES, lower if plan == "plain" else "")
    if plan == "root":
        walls["user"] = "made by root without one"
    for name, raise_it in (
        ("landlock", lambda: kernel.landlock(room.readable(), [])),
        ("seccomp", lambda: kernel.seccomp(calls.program(os.getpid()))),
    ):
        walls[name] = lower if ceiling == "limits" else _try(raise_it)
    walls["uid"] = _try(lambda: room.become(uid_inside)) if uid_inside else ""
    if not uid and not os.geteuid():
        walls["uid"] = "no other user to become"
    walls["rlimits"] = _try(lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)))
    walls["capabilities"] = _try(kernel.drop_capabilities)
    walls["no_new_privs"] = _try(lambda: kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1))
    walls["descriptors"] = walls["environment"] = ""
    return walls


def _try(raise_wall: Callable[[], object]) -> str:
    """Run this in a child with no new privileges and return what went wrong, or ""."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid():
                kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
            raise_wall()
        except BaseException as error:
            os.write(writing, str(getattr(error, "strerror", None) or error).encode()[:500] or b"failed")
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    why = os.read(reading, 500).decode()
    os.close(reading)
    return why


def _watch(
    line: socket.socket, limits: dict[str, Any], files: list[int], plan: str, walls: dict[str, str], uid: int
) -> dict[str, Any]:
    """Run one evaluation below this process; returns its report once nothing of it is left.

    Where there are namespaces the child is process 1 of a new one: its end is the end of all in it.
    """
    place = "/tmp"
    if plan == "plain":
        place = tempfile.mkdtemp(prefix=f"puna-sandbox-{os.getpid()}-")
        if uid:
            os.chown(place, uid, uid)
    reading, writing = os.pipe()
    began = time.monotonic()
    if plan != "plain":
        kernel.unshare(kernel.CLONE_NEWPID)
    child = os.fork()
    if child == 0:
        _become_untrusted(limits, files, writing, place, plan, walls, uid)
    if plan != "plain":
        kernel.children_here_again()
    for file in (*files, writing):
        os.close(file)
    try:
        report = _wait(line, child, began + limits["seconds"])
    finally:
        if plan == "plain":
            _sweep()
            shutil.rmtree(place, ignore_errors=True)
    report["seconds"] = time.monotonic() - began
    said = os.read(reading, 500).decode(errors="replace")
    os.close(reading)
    if said != "ready" and not report["timeout"] and not report["cancelled"]:
        report["error"] = said or "the walls did not rise"
    return report


def _wait(line: socket.socket, child: int, deadline: float) -> dict[str, Any]:
    """Wait for the end of `child`, the deadline, or a word from outside; the last two kill it."""
    waiting = select.poll()
    pidfd = os.pidfd_open(child)
    waiting.register(pidfd, select.POLLIN)
    waiting.register(line, select.POLLIN)
    ready = dict(waiting.poll(max(0.0, deadline - time.monotonic()) * 1000))
    if pidfd not in ready:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    os.close(pidfd)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "timeout": not ready,
        "cancelled": bool(ready) and pidfd not in ready,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "memory_bytes": usage.ru_maxrss * 1024,
    }


def _sweep() -> None:
    """Without a process namespace: kill what the evaluation left, also what ran away from its parents."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and _parent_of(entry) == os.getpid():
                    os.kill(int(entry), signal.SIGKILL)
            except (OSError, ValueError):
                continue  # ended meanwhile
        time.sleep(0.001)


def _parent_of(pid: str) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])


def _become_untrusted(
    limits: dict[str, Any], files: list[int], writing: int, place: str, plan: str, walls: dict[str, str], uid: int
) -> None:
    """Raise every wall around this process, then run the harness. Never returns; says "ready" or what went wrong."""
    try:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        if plan != "plain":
            kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC)
            size = f"size={limits['disk_bytes']},nr_inodes={limits['files'] + 1}"
            owner = f"mode=700,uid={uid or os.geteuid()}"
            kernel.mount(
                "none", place, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC, f"{size},{owner}"
            )
        os.setsid()
        moved = [_high(file) for file in (*files, writing)]
        job, stdin, stdout, stderr, values, ready = moved
        for number, file in enumerate((stdin, stdout, stderr, values, job, ready)):
            os.dup2(file, number)
        os.closerange(6, 1 << 16)
        os.chdir(place)
        if uid:
            room.become(uid)
        _limit(limits, walls, uid)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # becoming somebody else took it away
        kernel.drop_capabilities()
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        if not walls["landlock"]:
            kernel.landlock([*room.readable(), *room.DEVICES[1:]], [place, room.DEVICES[0]])
        if not walls["seccomp"]:
            kernel.seccomp(calls.program(os.getpid()))
        os.write(5, b"ready")
        os.close(5)
    except BaseException as error:
        os.write(5, f"{type(error).__name__}: {error}".encode()[:500])
        os._exit(1)
    harness.run(job=4, values=3)


def _high(file: int) -> int:
    import fcntl

    return fcntl.fcntl(file, fcntl.F_DUPFD, 100)


def _limit(limits: dict[str, Any], walls: dict[str, str], uid: int) -> None:
    for kind, value in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_CPU, math.ceil(limits["cpu_seconds"])),
        (resource.RLIMIT_FSIZE, limits["disk_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        _lower(kind, value)
    if uid or not walls["user"]:
        _lower(resource.RLIMIT_NPROC, limits["tasks"] + 4)  # counted for this user in this namespace; four are ours
    elif walls["seccomp"]:
        # An ordinary user without a namespace: the kernel counts all that this user runs. With the filter no process
        # can be started, threads need memory, and the count, which others move, is left alone.
        _lower(resource.RLIMIT_NPROC, limits["tasks"] + _tasks_of(os.geteuid()))


def _lower(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _tasks_of(uid: int) -> int:
    count = 0
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.stat(f"/proc/{entry}").st_uid == uid:
                count += len(os.listdir(f"/proc/{entry}/task"))
        except OSError:
            continue
    return count
