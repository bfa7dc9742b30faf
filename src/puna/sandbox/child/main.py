"""The worker process inside the walls: waits for jobs, forks for each evaluation, supervises it, cleans up.

    worker.Sandbox ── socket ──> worker process (process 1 of its namespace) ──fork──> untrusted code
                               knows only limits; deadline, kill                     all walls, harness.run

Forking a running interpreter takes a millisecond or two, starting a new one tens. The worker began as a fresh
interpreter with an empty environment and reads neither source nor inputs: those are in files passed through to the
child. Its memory, and so a child's, contains nothing worth reading. Standard library only.
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

from puna.sandbox.child import harness, linux, namespaces, seccomp

PRELOADED = (
    "abc array ast base64 bisect calendar cmath collections collections.abc copy csv ctypes dataclasses "
    "datetime decimal difflib enum fractions functools hashlib heapq html inspect io itertools json keyword locale "
    "math numbers operator pprint queue random re secrets statistics string struct textwrap threading time traceback "
    "types typing unicodedata unittest uuid weakref zlib "
    "encodings.ascii encodings.latin_1 encodings.utf_16 encodings.utf_32"
)
NAMESPACES = ("user", "pid", "net", "ipc", "root", "tmpfs")


def main(control: int, plan: str, ceiling: str, uid: int) -> None:
    """Isolate this process by `plan`, report the walls over the socket `control`, then serve until it closes.

    uid: the user root becomes, 0 for an ordinary user. ceiling: no more walls than this level has (for tests and
    benchmarks).
    """
    os.environ.clear()
    for name in PRELOADED.split():
        __import__(name)
    sys.path[:] = [path for path in sys.path if path.startswith(tuple(namespaces.readable()))]
    line = socket.socket(fileno=control)
    try:
        namespaces.enter(plan, uid, lambda: _serve(line, plan, ceiling, uid))
    except OSError as error:
        line.send(json.dumps({"failed": str(error.strerror or error)}).encode())
        os._exit(1)


def _serve(line: socket.socket, plan: str, ceiling: str, uid: int) -> None:
    uid_inside = uid if plan != "user" else 0  # in a user namespace the worker has become that user already
    walls = _walls(plan, ceiling, uid, uid_inside)
    if plan == "plain":
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)  # a process that detaches from its parent becomes our child
    # Done once here instead of by each child on memory pages of its own.
    if not walls["seccomp"]:
        seccomp.program(1)
    for name in [name for name in sys.modules if name.split(".")[0] == "puna"]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # our objects leave the collector's lists, so memory pages stay shared after a fork
    line.send(json.dumps({"walls": walls}).encode())
    while True:
        message, files, _, _ = socket.recv_fds(line, 65536, 8)
        if not message:
            return
        if message == b"cancel":
            continue  # arrived when its evaluation had just ended
        try:
            report = _supervise(line, json.loads(message), files, plan, walls, uid_inside)
        except BaseException as error:
            report = {"error": f"{type(error).__name__}: {error}"[:500]}
        line.send(json.dumps(report).encode())


def _walls(plan: str, ceiling: str, uid: int, uid_inside: int) -> dict[str, str]:
    """Each wall and why it is missing, or "" if present; those that can fail are tried in a child process."""
    lower = f"the ceiling is '{ceiling}'"
    walls = dict.fromkeys(NAMESPACES, lower if plan == "plain" else "")
    if plan == "root":
        walls["user"] = "namespaces made by root without one"
    for name, build in (
        ("landlock", lambda: linux.landlock(namespaces.readable(), [])),
        ("seccomp", lambda: linux.seccomp(seccomp.program(os.getpid()))),
    ):
        walls[name] = lower if ceiling == "limits" else _try(build)
    walls["uid"] = _try(lambda: namespaces.become(uid_inside)) if uid_inside else ""
    if not uid and not os.geteuid():
        walls["uid"] = "running as root with no other user to become"
    walls["rlimits"] = _try(lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)))
    walls["capabilities"] = _try(linux.drop_capabilities)
    walls["no_new_privs"] = _try(lambda: linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1))
    walls["descriptors"] = walls["environment"] = ""
    return walls


def _try(build: Callable[[], object]) -> str:
    """Build a wall in a child with no new privileges; returns what went wrong, or ""."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid():
                linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
            build()
        except BaseException as error:
            os.write(writing, str(getattr(error, "strerror", None) or error).encode()[:500] or b"failed")
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    why = os.read(reading, 500).decode()
    os.close(reading)
    return why


def _supervise(
    line: socket.socket, limits: dict[str, Any], files: list[int], plan: str, walls: dict[str, str], uid: int
) -> dict[str, Any]:
    """Run one evaluation as a child; returns its report when nothing of it is left.

    With namespaces the child is process 1 of a new one: when it ends, so does everything in it.
    """
    place = "/tmp"
    if plan == "plain":
        place = tempfile.mkdtemp(prefix=f"puna-sandbox-{os.getpid()}-")
        if uid:
            os.chown(place, uid, uid)
    reading, writing = os.pipe()
    began = time.monotonic()
    if plan != "plain":
        linux.unshare(linux.CLONE_NEWPID)
    child = os.fork()
    if child == 0:
        _become_untrusted(limits, files, writing, place, plan, walls, uid)
    if plan != "plain":
        linux.restore_child_namespace()
    for file in (*files, writing):
        os.close(file)
    try:
        report = _wait(line, child, began + limits["seconds"])
    finally:
        if plan == "plain":
            _sweep()
            shutil.rmtree(place, ignore_errors=True)
    report["seconds"] = time.monotonic() - began
    message = os.read(reading, 500).decode(errors="replace")
    os.close(reading)
    if message != "ready" and not report["timeout"] and not report["cancelled"]:
        report["error"] = message or "the walls were not built"
    return report


def _wait(line: socket.socket, child: int, deadline: float) -> dict[str, Any]:
    """Wait for `child` to end, the deadline, or a message from outside; the last two kill it."""
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
    """Without a process namespace: kill all processes the evaluation left, including detached ones."""
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
                continue  # it has ended
        time.sleep(0.001)


def _parent_of(pid: str) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])


def _become_untrusted(
    limits: dict[str, Any], files: list[int], writing: int, place: str, plan: str, walls: dict[str, str], uid: int
) -> None:
    """Build all walls around this process, then run the harness. Never returns; reports "ready" or what went wrong."""
    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        if plan != "plain":
            linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWIPC)
            size = f"size={limits['disk_bytes']},nr_inodes={limits['files'] + 1}"
            owner = f"mode=700,uid={uid or os.geteuid()}"
            linux.mount(
                "none",
                place,
                "tmpfs",
                linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC,
                f"{size},{owner}",
            )
        os.setsid()
        moved = [_high(file) for file in (*files, writing)]
        job, stdin, stdout, stderr, values, ready = moved
        for number, file in enumerate((stdin, stdout, stderr, values, job, ready)):
            os.dup2(file, number)
        os.closerange(6, 1 << 16)
        os.chdir(place)
        if uid:
            namespaces.become(uid)
        _limit(limits, walls, uid)
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)  # changing the user has cleared it
        linux.drop_capabilities()
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        if not walls["landlock"]:
            linux.landlock([*namespaces.readable(), *namespaces.DEVICES[1:]], [place, namespaces.DEVICES[0]])
        if not walls["seccomp"]:
            linux.seccomp(seccomp.program(os.getpid()))
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
        # An ordinary user without a namespace: the kernel counts all processes of this user. With seccomp no process
        # can be started and threads need memory, so the count, which other programs change, is left alone.
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
